"""Other launches of the Triton kernel, beside the one that it chooses: fewer warps, smaller tiles, other registers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import torch

import bench_loss
from device_events import Work
from gpu_check.cases import VARIED
from gpu_check.probes.options import make_parser
from gpu_check.report import Report
from hpcdistill.kernels import triton_codistillation
from measure import in_turns, ratio

Launch = dict[str, Any]

VARIANTS: dict[str, Callable[[Launch], Launch]] = {
    "as it is": lambda launch: launch,
    "half the warps": lambda launch: (
        launch
        | {
            "num_warps": max(1, launch["num_warps"] // 2),
            **_half_tile(launch),
            "maxnreg": min(255, 2 * launch["maxnreg"]),
        }
    ),
    "half the tile": lambda launch: launch | _half_tile(launch),
    "registers of the compiler's choice": lambda launch: {k: v for k, v in launch.items() if k != "maxnreg"},
}
"""Changes of the launch options of a row that is read in tiles."""


def _half_tile(launch: Launch) -> Launch:
    name = "HEIGHT" if launch["FOLD"] else "WIDTH"
    return {name: launch[name] // 2}


def main() -> None:
    """Time the variants of each setting."""
    parser = make_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    report, device = Report(options.json), torch.device(options.device)
    for V, N in VARIED:
        student, teachers, target = bench_loss.random_inputs(bench_loss.Setting(V, N, "bf16"), 512, device)
        works, absent = bench_loss.kernels(student.detach(), target, teachers)
        if "triton" in absent:
            raise SystemExit(f"Triton cannot run: {absent['triton']}")
        varied: dict[str, Work] = {
            name: partial(run_with, change, works["kernel triton"]) for name, change in VARIANTS.items()
        }
        seconds = in_turns(varied, device, options.rounds)
        speeds = {name: ratio(seconds, "as it is", name) for name in varied}
        report.row("speed of variants, in speeds of the launch as it is", V=V, N=N, **speeds)


def run_with(change: Callable[[Launch], Launch], work: Work) -> None:
    """Run `work` with changed options of Triton's launches."""
    chosen = triton_codistillation.launch_options

    def changed(*arguments: Any) -> Launch:
        launch = chosen(*arguments)
        return launch if launch["WHOLE"] else change(launch)

    with mock.patch.object(triton_codistillation, "launch_options", changed):
        work()


if __name__ == "__main__":
    main()
