"""Bars for the Triton kernel's machine code; test_triton_codistillation.py runs them where Triton does not interpret.

The kernels are those of long rows, where speed counts, and those that need most registers.
"""

import torch
from kernel_counts import TARGETS, Configuration, compiled, occupancy, per_column, usage


def check(configuration: Configuration, instructions: float, special: float, warps: int) -> None:
    """Check instructions and special functions a column, and the warps of a multiprocessor, on an H100."""
    kernel = compiled(configuration, TARGETS["sm_90"])
    registers, spilled = usage(kernel)
    found = per_column(configuration, kernel)
    assert spilled == 0, configuration
    assert found[0] <= instructions, (configuration, found)
    assert found[1] <= special, (configuration, found)
    assert occupancy(kernel, registers) >= warps, (configuration, registers)


def check_spills(configuration: Configuration, target: str) -> None:
    registers, spilled = usage(compiled(configuration, TARGETS[target]))
    assert spilled == 0, (configuration, target, registers, spilled)


if __name__ == "__main__":
    half = torch.bfloat16
    check(Configuration(half, 1, False, "plain"), instructions=34, special=4.25, warps=32)
    check(Configuration(half, 3, False, "plain"), instructions=58, special=9.5, warps=32)
    check(Configuration(half, 1, False, "options, odd"), instructions=45, special=6.5, warps=32)
    check_spills(Configuration(half, 3, False, "options, unaligned"), "sm_90")
    check_spills(Configuration(half, 1, False, "options, class weights"), "sm_90")
    check_spills(Configuration(torch.float64, 3, True, "options"), "sm_90")
    check_spills(Configuration(half, 3, False, "plain"), "sm_100")
    for target in ("sm_80", "gfx90a", "gfx942"):
        check_spills(Configuration(half, 3, False, "options"), target)
