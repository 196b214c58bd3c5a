"""Registers of the Triton kernel on GPUs that need not be present: compiles the launches of `run` and counts.

``python tools/triton_registers.py`` prints a table and writes it to docs/registers.md.
"""

# ruff: noqa: N803, N806 - V and N are the field's names

import itertools
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from hpcdistill.kernels import triton_codistillation, triton_row
from hpcdistill.kernels.rows import Rows, Shard, compute_dtype

CAPABILITIES = (80, 90, 100)
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
INTRODUCTION = """# Registers of the Triton kernel

Registers per thread of the kernel in `kernels/triton_row.py`, which limit the number of rows that a GPU processes at
the same time, and the bytes that are spilled to memory because registers are missing; there must be none.
`python tools/triton_registers.py` writes this page and needs no GPU; {versions}.

"Read once" gives the longest row that is kept in registers; longer rows are read twice, in tiles. "Options" are a
temperature and label smoothing, and other options come in addition to them. "Unaligned" rows are loaded column by
column.
"""


@dataclass(frozen=True)
class Configuration:
    """Kind of call: dtype, number of teachers N, row length and options."""

    dtype: torch.dtype
    N: int
    read_once: bool
    options: str

    def rows(self) -> Rows:
        """Return a call of this kind with one row; its contents do not matter."""
        aligned = "unaligned" not in self.options
        options = self.options != "plain"
        V = 131072
        while self.read_once and not self._launch(V)["WHOLE"]:
            V //= 2
        V -= not aligned
        real = compute_dtype(self.dtype)
        row = torch.empty(1, V, dtype=self.dtype)
        lse = torch.empty(2 + self.N, 1, dtype=torch.float64)
        return Rows(
            row,
            target=torch.zeros(1, dtype=torch.int64),
            teachers=[row] * self.N,
            mixture=[0.3] * self.N,
            teacher_lse=torch.empty(self.N, 1, dtype=real) if "lse" in self.options else None,
            class_weight=torch.empty(V, dtype=real) if "class weights" in self.options else None,
            scales=torch.empty(3, dtype=real),
            temperature=4.0 if options else 1.0,
            label_smoothing=0.1 if options else 0.0,
            ignore_index=-100,
            losses=torch.empty(1, dtype=real),
            parts=torch.empty(3, 1, dtype=real),
            gradient=row,
            shard=Shard(0, 2 * V, lse, is_merged="second" in self.options) if "shard" in self.options else None,
        )

    def _launch(self, V: int) -> dict[str, int]:
        tensors = 1 + self.N + ("class weights" in self.options)
        return triton_codistillation.launch_options(V, tensors, self.dtype.itemsize, "unaligned" not in self.options)

    def __str__(self) -> str:
        rows = self.rows()
        launch = self._launch(rows.logits.shape[1])
        block = launch["HEIGHT"] * launch["WIDTH"]
        form = f"read once, to {block}" if self.read_once else f"tiles of {block}"
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{dtype} | {self.N} | {form} | {launch['num_warps']} | {self.options}"


def configurations() -> Iterator[Configuration]:
    """Yield the kinds of calls whose launches differ.

    Rows shorter than the longest one that is read once need the same registers per thread, in fewer threads. float16
    differs from bfloat16 only in its conversions, and float64 needs most registers with most teachers.
    """
    shards = ("options, a shard's first call", "options, a shard's second call")
    every = ("plain", "options", "options, unaligned", "options, class weights", *shards, "options, teacher_lse given")
    kinds = [(dtype, N) for dtype in (torch.bfloat16, torch.float32) for N in (0, 1, 3)]
    for dtype, N in [*kinds, (torch.float16, 1), (torch.float64, 3)]:
        for read_once, options in itertools.product((True, False), every if N else every[:-1]):
            yield Configuration(dtype, N, read_once, options)


def usage(configuration: Configuration, capability: int) -> tuple[int, int]:
    """Return the registers of a thread and the bytes that it spills, on GPUs of `capability` (90 for sm_90)."""
    kernel = triton_row.kernel
    target = GPUTarget("cuda", capability, 32)
    compiled = []

    def compile_only(*args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        backend = make_backend(target)
        bind = create_function_from_signature(kernel.signature, kernel.params, backend)
        packed = kernel._pack_args(backend, options, *bind(*args, **options))
        parsed, signature, constants, attributes = packed
        source = ASTSource(kernel, signature, constants, attributes)
        compiled.append(triton.compile(source, target=target, options=parsed.__dict__))

    with mock.patch.object(kernel, "run", compile_only):
        triton_codistillation.run(configuration.rows())
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        Path(cubin.name).write_bytes(compiled[0].asm["cubin"])
        command = [str(CUOBJDUMP), "-res-usage", cubin.name]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", output)
    assert found, output
    registers, stack, local = map(int, found.groups())
    return registers, stack + local  # spilled bytes are on the stack or in local memory


def main() -> None:
    """Print the table and write the page."""
    head = ["dtype", "N", "form", "warps", "options", *(f"sm_{capability}" for capability in CAPABILITIES), "spilled"]
    lines = [head, ["---"] * len(head)]
    for configuration in configurations():
        used = [usage(configuration, capability) for capability in CAPABILITIES]
        lines.append([str(configuration), *(str(registers) for registers, _ in used), str(max(s for _, s in used))])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    print(table)
    text = INTRODUCTION.format(versions=f"Triton {triton.__version__}")
    Path(__file__).parent.parent.joinpath("docs", "registers.md").write_text(f"{text}\n{table}\n")


if __name__ == "__main__":
    main()
