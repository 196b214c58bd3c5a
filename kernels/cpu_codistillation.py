"""The fused loss on CPUs: the compiled kernel of cpu_row.cpp."""

import ctypes
from functools import cache

import torch

from hpcdistill.kernels.c_interface import CRows, load
from hpcdistill.kernels.rows import Rows


def run(rows: Rows, instructions: str | None = None) -> None:
    """Fill the outputs of `rows`, on as many threads as torch uses.

    Args:
        rows: of CPU tensors, their labels in range.
        instructions: the instruction set to use; None for the best that this machine has.

    Raises:
        ImportError: the kernel was not built.
        MemoryError: there is none for a row's exponentials on each thread.
        ValueError: this machine has no such instructions.
    """
    name = None if instructions is None else instructions.encode()
    status = library().hpcdistill_codistillation_cpu(ctypes.byref(CRows.of(rows)), torch.get_num_threads(), name)
    if status == 1:
        raise MemoryError(f"no memory for {len(rows.teachers) + 2} rows of {rows.logits.shape[1]} numbers per thread")
    if status:
        raise ValueError(
            f"instructions is {instructions!r}, which this machine lacks; its best is {instruction_set()!r}"
        )


def instruction_set() -> str:
    """The best of "avx512_bf16", "avx512", "avx2" and "baseline" that this machine has."""
    name: bytes = library().hpcdistill_cpu_instructions()
    return name.decode()


@cache
def library() -> ctypes.CDLL:
    """The compiled kernel.

    Raises:
        ImportError: it was not built.
    """
    library = load("hpcdistill_cpu")
    library.hpcdistill_cpu_instructions.restype = ctypes.c_char_p
    return library
