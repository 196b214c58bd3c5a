"""Memory for large CPU tensors that come and go with every step.

malloc returns a block of 32 MiB or more to the kernel when it is freed, and gets it back page by page, each zeroed at
its first touch: for a gradient of logits that takes longer than computing it. So the last block that was freed is kept
for the next tensor of about its size, and lies in huge pages where the kernel has them.
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
"""In bytes; smaller blocks malloc keeps itself."""

_free: deque[mmap.mmap] = deque(maxlen=1)  # its operations are atomic: a tensor may be freed at any time, anywhere


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialised CPU tensor, whose memory goes to the next one when it is freed."""
    count = math.prod(shape)
    nbytes = count * dtype.itemsize
    if nbytes < SMALLEST:
        return torch.empty(shape, dtype=dtype)
    block = _take(nbytes)
    lease = (ctypes.c_char * nbytes).from_buffer(block)  # the tensor's storage keeps it alive
    weakref.finalize(lease, _free.append, block).atexit = False
    return torch.frombuffer(lease, dtype=dtype, count=count).view(shape)


def release() -> None:
    """Give the kept memory back to the system."""
    _free.clear()


def _take(nbytes: int) -> mmap.mmap:
    with contextlib.suppress(IndexError):
        block = _free.pop()
        if nbytes <= len(block) <= 2 * nbytes:
            return block
    block = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(AttributeError, OSError):  # not Linux, or a kernel without huge pages
        block.madvise(mmap.MADV_HUGEPAGE)
    return block
