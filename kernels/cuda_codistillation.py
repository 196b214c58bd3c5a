"""The fused loss on GPUs with thread-block clusters (Hopper and later): the compiled kernel of codistillation.cu.

For large vocabularies: a row and its teachers stay in shared memory, so that all of it is read once. Where they do
not fit, or on older GPUs, the Triton kernel is the one to use.
"""

import ctypes
from functools import cache

import torch

from hpcdistill.kernels.c_interface import CRows, load
from hpcdistill.kernels.rows import Rows


def run(rows: Rows) -> None:
    """Fill the outputs of `rows` on the current stream, without waiting; works in a CUDA graph too.

    Raises:
        ImportError: the kernel was not built.
        ValueError: the columns are a shard.
        RuntimeError: the GPU is too old, or a row with its teachers does not fit into a cluster's shared memory.
    """
    if rows.shard:
        raise ValueError("implementation 'cuda' knows no shards of a vocabulary; use 'triton'")
    device = rows.logits.device
    with torch.cuda.device(device):
        stream = ctypes.c_void_p(torch.cuda.current_stream(device).cuda_stream)
        error = library().hpcdistill_codistillation_cuda(ctypes.byref(CRows.of(rows)), stream)
    if error:
        streams = 1 + len(rows.teachers)
        size = streams * rows.logits.shape[1] * rows.logits.element_size()
        raise RuntimeError(
            f"the CUDA kernel cannot run on {device}: {library().hpcdistill_cuda_error_string(error).decode()} "
            f"(a row of the student and {len(rows.teachers)} teachers is {size} bytes); use implementation='triton'"
        )


@cache
def library() -> ctypes.CDLL:
    """The compiled kernel.

    Raises:
        ImportError: it was not built.
    """
    compiled = load("hpcdistill_cuda")
    compiled.hpcdistill_cuda_error_string.restype = ctypes.c_char_p
    return compiled
