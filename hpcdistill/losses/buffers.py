"""Reused memory for large CPU tensors that every step allocates and frees.

free() returns a block of 32 MiB or more to the operating system, and the next malloc() gets new pages, each of which is
zeroed at its first use. For a gradient of logits this takes longer than its computation. Therefore this module keeps
the block that was freed last for the next tensor of about the same size, in huge pages if the system has them.
"""

import contextlib
import ctypes
import math
import mmap
import weakref
from collections import deque

import torch
from torch import Tensor

SMALLEST = 32 * 2**20
"""Smallest size of a reused block, in bytes; malloc itself reuses smaller ones."""

_free: deque[mmap.mmap] = deque(maxlen=1)  # deque operations are atomic: any thread may free a tensor at any time


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return an uninitialized CPU tensor, whose memory is reused after it is freed."""
    count = math.prod(shape)
    nbytes = count * dtype.itemsize
    if nbytes < SMALLEST:
        return torch.empty(shape, dtype=dtype)
    block = _take(nbytes)
    lease = (ctypes.c_char * nbytes).from_buffer(block)  # the tensor's storage keeps it alive
    weakref.finalize(lease, _free.append, block).atexit = False
    return torch.frombuffer(lease, dtype=dtype, count=count).view(shape)


def release() -> None:
    """Return the kept memory to the operating system."""
    _free.clear()


def _take(nbytes: int) -> mmap.mmap:
    """Return the kept block if its size is right, else a new one."""
    with contextlib.suppress(IndexError):
        block = _free.pop()
        if nbytes <= len(block) <= 2 * nbytes:
            return block
    block = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(AttributeError, OSError):  # not Linux, or a kernel without huge pages
        block.madvise(mmap.MADV_HUGEPAGE)
    return block
