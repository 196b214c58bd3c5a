"""The fused loss on CPUs: calls of the compiled kernel (cpu_row.cpp)."""

import ctypes
from functools import cache

import torch

from hpcdistill.kernels.c_interface import CRows, load
from hpcdistill.kernels.rows import Rows


def run(rows: Rows, instructions: str | None = None) -> None:
    """Fill the outputs of `rows`, with torch's number of threads.

    Args:
        rows: CPU tensors, with labels in range.
        instructions: Name of the instruction set to use; None for the best of this machine.

    Raises:
        ImportError: The kernel was not built.
        MemoryError: There is no memory for the exponentials of a row on each thread.
        ValueError: This machine does not have the instruction set.
    """
    name = None if instructions is None else instructions.encode()
    status = library().hpcdistill_codistillation_cpu(ctypes.byref(CRows.from_rows(rows)), torch.get_num_threads(), name)
    if status == 1:
        raise MemoryError(f"no memory for {len(rows.teachers) + 2} rows of {rows.logits.shape[1]} numbers per thread")
    if status:
        raise ValueError(
            f"instructions is {instructions!r}, which this machine lacks; pass None or its best, {instruction_set()!r}"
        )


def instruction_set() -> str:
    """Return the best instruction set of this machine: "avx512_bf16", "avx512", "avx2" or "baseline"."""
    name: bytes = library().hpcdistill_cpu_instructions()
    return name.decode()


@cache
def library() -> ctypes.CDLL:
    """Return the compiled kernel.

    Raises:
        ImportError: The kernel was not built.
    """
    library = load("hpcdistill_cpu")
    library.hpcdistill_cpu_instructions.restype = ctypes.c_char_p
    return library
