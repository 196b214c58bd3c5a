"""Instructions and registers of the CUDA kernel, from the machine code of the built library; no GPU is needed.

``python tools/cuda_counts.py`` prints the section on it of docs/registers.md.
"""

# ruff: noqa: N803 - V and N are the field's names

import re
import shutil
import subprocess
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import sass

from hpcdistill.kernels import c_interface

LIBRARY = Path(c_interface.__file__).with_name("libhpcdistill_cuda.so")
# Vocabularies, and for each the blocks of a cluster and the threads of a block on an H100 with N = 1 and 16-bit logits.
LAUNCHES = {32000: (2, 256), 128256: (8, 256)}
INTRODUCTION = """## CUDA C++

The kernel in `kernels/cuda_row.cuh`, from the library that `make setup` has built, for sm_90.

- **in loops**: executed by a thread for each column, in the loops over its columns in both passes, without the code of
  options and of incomplete vectors; **special** as above.
- **outside**: executed by a warp outside these loops, at least. Two of the eight warps of a block merge the sums of the
  others or start copies, and execute a few hundred more, about one a column in the mean of all warps.
- **all**: in loops, and outside divided by the columns of a thread.
- **unaligned**: for each column in addition, for each teacher or gradient whose rows have another alignment to 16 bytes
  than the student's. They are loaded and stored by vectors all the same.

A multiprocessor runs three blocks of 256 threads at once, with at most 80 registers for each thread.
"""
KERNELS = {
    "bfloat16, N = 1": "I13__nv_bfloat16Li1ELb0EE",
    "bfloat16, N = 1, T ≠ 1": "I13__nv_bfloat16Li1ELb1EE",
    "float16, N = 1": "I6__halfLi1ELb0EE",
    "float16, N = 1, T ≠ 1": "I6__halfLi1ELb1EE",
}


@dataclass(frozen=True)
class Cost:
    """Instructions of a kernel for 16-bit logits."""

    in_loops: float
    """Instructions of a thread for each of its columns."""
    outside: int
    """Instructions of a thread outside the loops, at least."""
    special: float
    """Instructions in the loops that the multi-function unit executes, for each column."""
    unaligned: float
    """Instructions that copy a column of a matrix whose alignment differs from the student's."""

    def per_column(self, V: int) -> float:
        """Return all instructions of a thread divided by its columns."""
        blocks, threads = LAUNCHES[V]
        return self.in_loops + self.outside * blocks * threads / V


def cuobjdump() -> str | None:
    """Return the path of cuobjdump, from CUDA or from Triton; None if neither has it."""
    try:
        import triton
    except ImportError:
        return shutil.which("cuobjdump")
    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return str(bundled) if bundled.exists() else shutil.which("cuobjdump")


def output_of_cuobjdump(option: str, architecture: str) -> str:
    """Return what cuobjdump says of the library for one architecture, such as "sm_90"."""
    command = [cuobjdump() or "cuobjdump", option, "-arch", architecture, str(LIBRARY)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def usage(architecture: str) -> dict[str, tuple[int, int]]:
    """Return, for each kernel by its mangled name, the registers of a thread and the bytes that it spills."""
    output = output_of_cuobjdump("-res-usage", architecture)
    found = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", output)
    return {name: (int(registers), int(stack) + int(local)) for name, registers, stack, local in found}


def cost(instructions: Sequence[sass.Instruction]) -> Cost:
    """Return the cost of a kernel for 16-bit logits with at most one teacher."""
    loops = sass.innermost_loops(instructions)
    passes = [loop for loop in loops if _is_pass(loop)]
    copies = [loop for loop in loops if any(16 in (x.accessed("LDG"), x.accessed("STG")) for x in loop)]
    # The second pass stores the vectors that it has loaded for the student.
    columns = [sum(x.accessed("STS") or 0 for x in loop) or sum(x.accessed("LDS") for x in loop) for loop in passes]
    return Cost(
        sum(len(loop) / (size / 2) for loop, size in zip(passes, columns, strict=True)),
        _fewest_outside(instructions, passes),
        sum(sum(x.is_special for x in loop) / (size / 2) for loop, size in zip(passes, columns, strict=True)),
        max(len(loop) / 8 for loop in copies),
    )


def _is_pass(loop: Sequence[sass.Instruction]) -> bool:
    return any(x.is_special for x in loop) and any(x.accessed("LDS") == 16 for x in loop)


def _fewest_outside(instructions: Sequence[sass.Instruction], passes: Sequence[Sequence[sass.Instruction]]) -> int:
    """Return the length of the shortest way from the first instruction through all loops to an end of the kernel."""
    total, start = 0, 0
    index = {x.address: i for i, x in enumerate(instructions)}
    for loop in passes:
        total += _distance(instructions, index, start, {index[loop[0].address]})
        start = index[loop[-1].address]
    return total + _distance(instructions, index, start, {i for i, x in enumerate(instructions) if x.name == "EXIT"})


def _distance(instructions: Sequence[sass.Instruction], index: dict[int, int], start: int, ends: set[int]) -> int:
    distances, waiting = {start: 0}, deque([start])
    while waiting:
        i = waiting.popleft()
        if i in ends:
            return distances[i]
        for j in _following(instructions[i], i, index):
            if j not in distances:
                distances[j] = distances[i] + 1
                waiting.append(j)
    raise ValueError("a loop of the kernel is not reached")


def _following(x: sass.Instruction, i: int, index: dict[int, int]) -> Iterator[int]:
    if not x.is_final:
        yield i + 1
    if x.target in index:
        yield index[x.target]


def costs(architecture: str = "sm_90") -> dict[str, Cost]:
    """Return the costs of KERNELS, or none if the library was built for other architectures."""
    found = {}
    for text in re.split(r"(?=^\s*Function : )", output_of_cuobjdump("-sass", architecture), flags=re.M):
        for kind, mark in KERNELS.items():
            if mark in text[:200]:  # the mangled name
                (instructions,) = sass.functions(text).values()
                found[kind] = cost(instructions)
    return {kind: found[kind] for kind in KERNELS if kind in found}


def section() -> str:
    """Return the section on the CUDA kernel of docs/registers.md."""
    counted, used = costs(), usage("sm_90")
    lines = [
        [
            "kernel",
            "in loops",
            "special",
            "outside",
            *(f"all, V = {V}" for V in LAUNCHES),
            "unaligned",
            "registers",
            "spilled",
        ]
    ]
    lines.append(["---"] * len(lines[0]))
    for kind, mark in KERNELS.items():
        x = counted[kind]
        (kernel,) = (numbers for name, numbers in used.items() if mark in name)
        in_all = [f"{x.per_column(V):.1f}" for V in LAUNCHES]
        lines.append(
            [
                kind,
                f"{x.in_loops:.1f}",
                f"{x.special:.1f}",
                str(x.outside),
                *in_all,
                f"{x.unaligned:.1f}",
                *map(str, kernel),
            ]
        )
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{INTRODUCTION}\n{table}\n"


if __name__ == "__main__":
    print(section(), end="")
