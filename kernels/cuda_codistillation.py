"""The fused loss on GPUs with thread-block clusters (Hopper and later): calls of the compiled kernel codistillation.cu.

It is made for large vocabularies: a row and its teachers stay in shared memory, so that each logit is read once. If
they do not fit, and on older GPUs, use the Triton kernel.
"""

import ctypes
from functools import cache

import torch

from hpcdistill.kernels.c_interface import CRows, load
from hpcdistill.kernels.rows import Rows


def run(rows: Rows) -> None:
    """Fill the outputs of `rows` on the current stream, without synchronization; CUDA graphs can capture it.

    Raises:
        ImportError: The kernel was not built.
        ValueError: The columns are a shard.
        RuntimeError: The GPU is too old, or a row with its teachers does not fit into a cluster's shared memory.
    """
    if rows.shard:
        raise ValueError("implementation 'cuda' does not support vocab_parallel; use 'triton'")
    device = rows.logits.device
    with torch.cuda.device(device):  # the call makes it current, and this restores the one before
        stream = ctypes.c_void_p(torch.cuda.current_stream(device).cuda_stream)
        error = library().hpcdistill_codistillation_cuda(ctypes.byref(CRows.from_rows(rows)), device.index, stream)
    if error:
        streams = 1 + len(rows.teachers)
        size = streams * rows.logits.shape[1] * rows.logits.element_size()
        raise RuntimeError(
            f"the CUDA kernel cannot run on {device}: {library().hpcdistill_cuda_error_string(error).decode()} "
            f"(a row of the student and {len(rows.teachers)} teachers is {size} bytes); use implementation='triton'"
        )


@cache
def library() -> ctypes.CDLL:
    """Return the compiled kernel.

    Raises:
        ImportError: The kernel was not built.
    """
    compiled = load("hpcdistill_cuda")
    compiled.hpcdistill_cuda_error_string.restype = ctypes.c_char_p
    return compiled
