"""Registers and instructions of the Triton kernel on GPUs that need not be present: compiles the launches of `run`.

``python tools/kernel_counts.py`` prints a table and writes it to docs/registers.md.
"""

# ruff: noqa: N803, N806 - V and N are the field's names

import re
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import cuda_counts
import sass
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from hpcdistill.kernels import triton_codistillation, triton_row
from hpcdistill.kernels.rows import Rows, Shard, compute_dtype

TARGETS = {f"sm_{capability}": GPUTarget("cuda", capability, 32) for capability in (80, 90, 100)}
TARGETS |= {name: GPUTarget("hip", name, 64) for name in ("gfx90a", "gfx942")}
"""GPUs for which the kernel is compiled: NVIDIA's with warps of 32 threads, AMD's with 64."""
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
INTRODUCTION = """# Registers and instructions of the kernels for GPUs

Counts from machine code, compiled without a GPU; nothing on this page has been measured on one.
`python tools/kernel_counts.py` writes it.

## Triton

{versions}, for sm_90 (H100, H200) and, in the last two columns, gfx942
(MI300).

- **instructions**: executed by a thread for each column, in the loops over the tiles of a row, in both passes. An H100
  can issue about 49 for each column in the time that it needs to move a bfloat16 row with one teacher at 90 % of its
  copy rate, an H200 about 34. "One tile": the row is kept in registers, there is no loop.
- **special**: those of them on the special-function unit, such as exponentials.
- **registers** of a thread. They limit the **warps at once** of a multiprocessor, which has room for 64.
- **spilled**: bytes of a thread that are in memory because registers are missing; on sm_90 there must be none.

"Read once" gives the longest row that is kept in registers; longer rows are read twice, in tiles. "Options" are a
temperature and label smoothing, and other options come in addition to them. "Odd" rows begin and end between two
vectors of 16 bytes, as those of 50257 columns do, but in the same place in all matrices: all but their first and last
columns are accessed in vectors. "Unaligned" rows begin in different places, and are accessed column by column.
"""


@dataclass(frozen=True)
class Configuration:
    """Kind of call: dtype, number of teachers N, row length and options."""

    dtype: torch.dtype
    N: int
    read_once: bool
    options: str

    def rows(self, target: GPUTarget) -> Rows:
        """Return a call of this kind with one row; its contents do not matter."""
        options = self.options != "plain"
        V = 131072
        while self.read_once and not self.launch(V, target)["WHOLE"]:
            V //= 2
        V -= "odd" in self.options or "unaligned" in self.options
        real = compute_dtype(self.dtype)
        row = torch.empty(1, V, dtype=self.dtype)
        teacher = torch.empty(1, V + 1, dtype=self.dtype)[:, 1:] if "unaligned" in self.options else row
        lse = torch.empty(2 + self.N, 1, dtype=torch.float64)
        return Rows(
            row,
            target=torch.zeros(1, dtype=torch.int64),
            teachers=[row] * self.N,
            mixture=[1 / self.N] * self.N if self.N else [],
            teacher_lse=torch.empty(self.N, 1, dtype=real) if "lse" in self.options else None,
            class_weight=torch.empty(V, dtype=real) if "class weights" in self.options else None,
            scales=torch.empty(3, dtype=real),
            temperature=4.0 if options else 1.0,
            label_smoothing=0.1 if options else 0.0,
            ignore_index=-100,
            losses=torch.empty(1, dtype=real),
            parts=torch.empty(3, 1, dtype=real),
            gradient=teacher,
            shard=Shard(0, 2 * V, lse, is_merged="second" in self.options) if "shard" in self.options else None,
        )

    def launch(self, V: int, target: GPUTarget) -> dict[str, int]:
        """Return the launch options of a call with V columns."""
        weighted, aligned = "class weights" in self.options, "unaligned" not in self.options
        return triton_codistillation.launch_options(V, 1 + self.N, weighted, self.dtype.itemsize, aligned, target)

    def __str__(self) -> str:
        launch = self.launch(self.rows(TARGETS["sm_90"]).logits.shape[1], TARGETS["sm_90"])
        block = launch["HEIGHT"] * launch["WIDTH"]
        form = f"read once, to {block}" if self.read_once else f"tiles of {block}"
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{dtype} | {self.N} | {form} | {launch['num_warps']} | {self.options}"


def compiled(configuration: Configuration, target: GPUTarget) -> Any:
    """Compile the launch of a call for a GPU, as `run` would there."""
    kernel = triton_row.kernel
    kernels = []

    def compile_only(*args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        backend = make_backend(target)
        bind = create_function_from_signature(kernel.signature, kernel.params, backend)
        packed = kernel._pack_args(backend, options, *bind(*args, **options))
        parsed, signature, constants, attributes = packed
        source = ASTSource(kernel, signature, constants, attributes)
        kernels.append(triton.compile(source, target=target, options=parsed.__dict__))

    patch_target = mock.patch.object(triton_codistillation, "_target", return_value=target)
    with mock.patch.object(kernel, "run", compile_only), patch_target:
        triton_codistillation.run(configuration.rows(target))
    return kernels[0]


def cuobjdump(kernel: Any, option: str) -> str:
    """Return the output of cuobjdump for a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        Path(cubin.name).write_bytes(kernel.asm["cubin"])
        command = [str(CUOBJDUMP), option, cubin.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def usage(kernel: Any) -> tuple[int, int]:
    """Return the registers of a thread and the bytes that it spills."""
    if "amdgcn" in kernel.asm:
        found = re.findall(r"\.(?:private_segment_fixed_size|vgpr_count):\s+(\d+)", kernel.asm["amdgcn"])
        spilled, registers = map(int, found)
        return registers, spilled
    output = cuobjdump(kernel, "-res-usage")
    ((registers, stack, local),) = re.findall(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", output)
    return int(registers), int(stack) + int(local)  # spilled bytes are on the stack or in local memory


def per_column(configuration: Configuration, kernel: Any) -> tuple[float, float]:
    """Return the instructions, and those of them on the special-function unit, that a column costs in the loops.

    Both passes over the tiles count. The columns of an iteration follow from the bytes that it loads.
    """
    (instructions,) = sass.functions(cuobjdump(kernel, "-sass")).values()
    loops = [loop for loop in sass.innermost_loops(instructions) if any(x.accessed("LDG") for x in loop)]
    itemsize, both = configuration.dtype.itemsize, 1 + configuration.N
    bytes_of_passes = [
        itemsize * (1 if "lse" in configuration.options else both),
        itemsize * both + ("class weights" in configuration.options) * compute_dtype(configuration.dtype).itemsize,
    ]
    if "shard" in configuration.options:  # each call of a shard has one of the passes
        bytes_of_passes = bytes_of_passes[:1] if "first" in configuration.options else bytes_of_passes[1:]
    total = special = 0.0
    for loop, size in zip(loops, bytes_of_passes, strict=True):
        columns = sum(x.accessed("LDG") for x in loop) / size
        total += len(loop) / columns
        special += sum(x.is_special for x in loop) / columns
    return total, special


def occupancy(kernel: Any, registers: int) -> int:
    """Return the warps that run at the same time on a multiprocessor with 64 warps and 65536 registers."""
    warps = kernel.metadata.num_warps
    allocated = -(-registers // 8) * 8 * 32 * warps  # registers are given to a warp in steps of 256
    return int(min(64 // warps, 65536 // allocated) * warps)


def configurations() -> Iterator[Configuration]:
    """Yield the kinds of calls whose launches differ.

    Rows shorter than the longest one that is read once need the same registers per thread, in fewer threads. float16
    differs from bfloat16 only in its conversions, and float64 needs most registers with most teachers.
    """
    shards = ("options, a shard's first call", "options, a shard's second call")
    some = ("plain", "options", "options, odd", "options, unaligned")
    every = (*some, "options, class weights", *shards, "options, teacher_lse given")
    kinds = [(torch.bfloat16, N) for N in (0, 1, 3)]
    for dtype, N in [*kinds, (torch.float32, 1), (torch.float32, 3), (torch.float64, 3), (torch.float16, 1)]:
        for options in every if dtype == torch.bfloat16 else some:
            if N or "lse" not in options:
                yield Configuration(dtype, N, False, options)
        yield from (Configuration(dtype, N, True, options) for options in some)


def counts(configuration: Configuration) -> str:
    """Return the row of a configuration in the table."""
    kernel = compiled(configuration, TARGETS["sm_90"])
    registers, spilled = usage(kernel)
    loops = ["one tile", ""] if configuration.read_once else [f"{x:.1f}" for x in per_column(configuration, kernel)]
    of_amd, scratch = usage(compiled(configuration, TARGETS["gfx942"]))
    numbers = [*loops, registers, occupancy(kernel, registers), spilled, of_amd, scratch]
    return " | ".join(map(str, [configuration, *numbers]))


def main() -> None:
    """Print the table and write the page."""
    head = [
        "dtype",
        "N",
        "rows",
        "warps",
        "options",
        "instructions",
        "special",
        "registers",
        "warps at once",
        "spilled",
    ]
    head += ["gfx942: registers", "spilled"]
    with ProcessPoolExecutor() as pool:
        lines = [" | ".join(head), " | ".join(["---"] * len(head)), *pool.map(counts, configurations())]
    table = "\n".join(f"| {line} |" for line in lines)
    print(table)
    text = INTRODUCTION.format(versions=f"Triton {triton.__version__}")
    Path(__file__).parent.parent.joinpath("docs", "registers.md").write_text(
        f"{text}\n{table}\n\n{cuda_counts.section()}"
    )


if __name__ == "__main__":
    main()
