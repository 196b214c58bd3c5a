"""The fused codistillation loss as a Triton kernel: one launch for losses, their parts and gradients.

There is one program per row. A row that fits into registers, with its teachers' rows, is read once. A longer row is
read twice, in tiles: first for the softmax sums, then from its end, which is still in the cache, for the divergence and
the gradient. The tiles of the first pass need no barrier: every lane keeps sums of its own columns.

`tools/triton_registers.py` compiles these launches without a GPU and counts their registers: none may be spilled.
"""

# Triton itself determines the types of a kernel's arguments.
# mypy: disable-error-code="untyped-decorator,no-untyped-def"

import ctypes

import torch
import triton
import triton.language as tl
from torch import Tensor

from hpcdistill.kernels.rows import Rows
from hpcdistill.kernels.triton_row import kernel


def run(rows: Rows) -> None:
    """Fill the outputs of `rows`, on an NVIDIA GPU (or on the CPU, in Triton's interpreter)."""
    count, V = rows.logits.shape
    if not count:
        return
    N = len(rows.teachers)
    temperature = rows.temperature if N else 1.0  # it has no effect without teachers
    smoothed = rows.label_smoothing > 0
    smooth_weight = rows.class_weight if smoothed else None  # otherwise only the label's weight is loaded
    shard = rows.shard
    matrices = [x for x in (rows.logits, *rows.teachers, rows.gradient) if x is not None]
    aligned = V % 16 == 0 and all(x.stride(0) % 16 == 0 and x.data_ptr() % 16 == 0 for x in matrices)
    numbers = (temperature, 1 / temperature, rows.label_smoothing)
    double = rows.losses.dtype == torch.float64
    kernel[(count,)](
        (rows.logits, *rows.teachers),
        tuple(x.stride(0) for x in (rows.logits, *rows.teachers)),
        rows.target,
        tuple(_halves(share) for share in rows.mixture),
        rows.teacher_lse if N else None,
        rows.class_weight,
        None if smooth_weight is None else smooth_weight.sum(),
        rows.scales,
        tuple(_halves(number) for number in numbers),
        rows.ignore_index,
        rows.losses,
        rows.parts,
        rows.gradient,
        0 if rows.gradient is None else rows.gradient.stride(0),
        V,
        shard.first_class if shard else 0,
        rows.classes,
        shard.lse if shard else None,
        IS_MERGED=shard is not None and shard.is_merged,
        TEMPERED=temperature != 1,
        SMOOTHED=smoothed,
        APPROXIMATE=isinstance(kernel, triton.JITFunction) and not double,
        **launch_options(V, 1 + N + (smooth_weight is not None), rows.logits.element_size(), aligned),
    )


def scale_rows_(gradient: Tensor, factors: Tensor) -> None:
    """Multiply row r of `gradient` ``[rows, V]`` (adjacent columns) by `factors` ``[rows]``, in place.

    `factors` may have any stride, also 0. A row whose factor is 1, as in the usual backward of a mean, is not accessed.
    """
    rows, V = gradient.shape
    if rows:
        block = min(4096, triton.next_power_of_2(V))
        _scale_kernel[(rows,)](gradient, gradient.stride(0), factors, factors.stride(0), V, block, num_warps=8)


def launch_options(V: int, tensors: int, itemsize: int, aligned: bool) -> dict[str, int]:
    """Return the launch options of `kernel` with which no register spills.

    An aligned row is read once up to 16384 columns without teachers, 8192 with one and 4096 with three. For twice as
    many columns there are not enough registers, but the L1 cache of a multiprocessor still holds most of the row for
    the second pass.

    Args:
        V: Number of columns.
        tensors: Number of tensors that are read along a row: student, teachers, and class weights for smoothed labels.
        itemsize: Bytes of a logit.
        aligned: True if V and every row's address in bytes are multiples of 16, so that a thread loads 16 bytes at
            once.
    """
    vector = 16 // itemsize
    register_heavy = not aligned or itemsize == 8
    # A row is read once if each thread holds at most `held` numbers of all tensors, and 16 columns.
    held, most_warps = (64 // itemsize, 16) if register_heavy else (16, 32)
    block = max(triton.next_power_of_2(V), vector)
    warps = triton.next_power_of_2(triton.cdiv(max(block // 16, block * tensors // held), 32))
    whole = warps <= most_warps
    if not whole:
        most_warps = 8 if tensors > 4 else 16 if tensors > 2 or register_heavy else 32
        # With more warps fewer long rows run at the same time, and the L2 cache holds more of each for the second pass.
        warps = most_warps if V * tensors * itemsize > 128 << 10 else min(most_warps, 16)
        block = warps * 32 * vector * (2 if tensors == 1 else 1)
    # `fold` is the axis of a tile along which one thread has several columns: adjacent ones if it loads them at once.
    height, width, fold = (block // vector, vector, 1) if aligned else (vector, block // vector, 0)
    return {
        "ALIGNED": aligned,
        "WHOLE": whole,
        "HEIGHT": height,
        "WIDTH": width,
        "FOLD": fold,
        "num_warps": warps,
        "maxnreg": min(65536 // (32 * most_warps), 255),  # registers of a multiprocessor / threads
        "enable_fp_fusion": True,
    }


def _halves(number: float) -> tuple[float, float]:
    """Return two float32 numbers whose sum is `number` in double precision; Triton passes floats as float32."""
    high = ctypes.c_float(number).value
    return high, number - high


@triton.jit
def _scale_kernel(gradient, gradient_stride, factors, factors_stride, V, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    factor = tl.load(factors + row * factors_stride)
    if factor == 1:
        return
    gradient += row * gradient_stride
    for start in range(0, V, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        x = tl.load(gradient + columns, mask=columns < V).to(factor.dtype)
        tl.store(gradient + columns, x * factor, mask=columns < V)
