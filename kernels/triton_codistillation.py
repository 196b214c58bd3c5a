"""The fused codistillation loss as a Triton kernel: one launch for losses, their parts and gradients.

There is one program per row. A row that fits into registers, with its teachers' rows, is read once. A longer row is
read twice, in tiles: first for the softmax sums, then from its end, which is still in the cache, for the divergence and
the gradient. The tiles of the first pass need no barrier: every lane keeps sums of its own columns.

`tools/kernel_counts.py` compiles these launches without a GPU and counts their registers and instructions: no register
may be spilled.
"""

# Triton itself determines the types of a kernel's arguments.
# mypy: disable-error-code="untyped-decorator,no-untyped-def"

import ctypes
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from hpcdistill.kernels.rows import Rows
from hpcdistill.kernels.triton_row import kernel

INTERPRETED = GPUTarget("cuda", 90, 32)
"""GPU for which the launches of Triton's interpreter are made."""
_compiled: dict[tuple[Any, ...], tuple[Any, ...]] = {}  # kernels and their constants; see `_launch`


def run(rows: Rows) -> None:
    """Fill the outputs of `rows`, on an NVIDIA or AMD GPU (or on a CPU, in Triton's interpreter)."""
    count, V = rows.logits.shape
    if not count:
        return
    N, shard, gradient = len(rows.teachers), rows.shard, rows.gradient
    temperature = rows.temperature if N else 1.0  # it has no effect without teachers
    smoothed = rows.label_smoothing > 0
    smooth_weight = rows.class_weight if smoothed else None  # otherwise only the label's weight is loaded
    read, itemsize = (rows.logits, *rows.teachers), rows.logits.element_size()
    lead, aligned, edges = _vectors(read if gradient is None else (*read, gradient), 16 // itemsize)
    shapes = (  # numbers for which the compiler may specialize the kernel
        tuple(x.stride(0) for x in read),
        0 if gradient is None else gradient.stride(0),
        V,
        shard.first_class if shard else 0,
        rows.classes,
    )
    strides, gradient_stride, *numbers_of_classes = shapes
    with _guard(rows.logits.device):
        target = _target(rows.logits.device)
        arguments = (
            read,
            strides,
            rows.target,
            tuple(_halves(share) for share in rows.mixture),
            rows.teacher_lse if N else None,
            rows.class_weight,
            None if smooth_weight is None else smooth_weight.sum(),
            rows.scales,
            tuple(_halves(number) for number in (temperature, 1 / temperature, rows.label_smoothing)),
            rows.ignore_index,
            rows.losses,
            rows.parts,
            gradient,
            gradient_stride,
            lead,
            *numbers_of_classes,
            shard.lse if shard else None,
        )
        constants = {
            "IS_MERGED": shard is not None and shard.is_merged,
            "TEMPERED": temperature != 1,
            "SMOOTHED": smoothed,
            "PTX": isinstance(kernel, triton.JITFunction) and target.backend == "cuda",
            "EDGES": edges,
            **launch_options(V, 1 + N, smooth_weight is not None, itemsize, aligned, target),
        }
        _launch(kernel, count, arguments, constants, (rows.logits.device, rows.ignore_index, *shapes))


def scale_rows_(gradient: Tensor, factors: Tensor) -> None:
    """Multiply row r of `gradient` ``[rows, V]`` (adjacent columns) by `factors` ``[rows]``, in place.

    `factors` may have any stride, also 0. A row whose factor is 1, as in the usual backward of a mean, is not accessed.
    """
    rows, V = gradient.shape
    if rows:
        shapes = (gradient.stride(0), factors.stride(0), V, gradient.data_ptr() % 16 == 0)
        arguments = (gradient, gradient.stride(0), factors, factors.stride(0), V)
        constants = {"BLOCK": min(4096, triton.next_power_of_2(V)), "num_warps": 8, "enable_fp_fusion": True}
        with _guard(gradient.device):
            _launch(_scale_kernel, rows, arguments, constants, (gradient.device, *shapes))


@cache
def launch_options(
    V: int, tensors: int, weighted: bool, itemsize: int, aligned: bool, target: GPUTarget
) -> dict[str, int]:
    """Return the launch options of `kernel` with which no register spills.

    An aligned row is read once up to 16384 columns without teachers, 8192 with one and 4096 with three. For twice as
    many columns there are not enough registers, but the L1 cache of a multiprocessor still holds most of the row for
    the second pass.

    Args:
        V: Number of columns.
        tensors: Number of tensors of logits: student and teachers.
        weighted: True if class weights are read, too, for smoothed labels.
        itemsize: Bytes of a logit.
        aligned: True if a thread can load 16 bytes at once.
        target: GPU for which the kernel is compiled.
    """
    vector = 16 // itemsize
    tensors += weighted
    register_heavy = not aligned or itemsize == 8
    is_blackwell = target.backend == "cuda" and target.arch >= 100
    # A row is read once if each thread holds at most `held` numbers of all tensors, and 16 columns.
    held, most_warps = (64 // itemsize, 16) if register_heavy else (16, 32)
    blocks = 1  # programs that a multiprocessor has registers for
    block = max(triton.next_power_of_2(V), vector)
    warps = triton.next_power_of_2(triton.cdiv(max(block // 16, block * tensors // held), 32))
    whole = warps <= most_warps
    if not whole:
        most_warps = 8 if tensors > 4 else 16 if tensors > 2 or register_heavy else 32
        # 64 registers are enough for four tensors, but not in the code that is made for Blackwell.
        blocks = 1 if tensors < 3 or most_warps < 16 or register_heavy or weighted or is_blackwell else 2
        # With more warps fewer long rows run at the same time, and the L2 cache holds more of each for the second pass.
        warps = most_warps if V * tensors * itemsize > 128 << 10 else min(most_warps, 16)
        block = warps * 32 * vector * (2 if tensors == 1 else 1)
    # `fold` is the axis of a tile along which one thread has several columns: adjacent ones if it loads them at once.
    height, width, fold = (block // vector, vector, 1) if aligned else (vector, block // vector, 0)
    options = {
        "ALIGNED": aligned,
        "WHOLE": whole,
        "STAGES": 1,  # more would cost 9 instructions a column, and the hints to the cache; not measured yet
        "HEIGHT": height,
        "WIDTH": width,
        "FOLD": fold,
        "num_warps": max(warps * 32 // target.warp_size, 1),
        "enable_fp_fusion": True,
    }
    if target.backend == "cuda":
        options["maxnreg"] = min(65536 // (32 * most_warps * blocks), 255)  # registers of a multiprocessor / threads
    return options


def _vectors(matrices: Sequence[Tensor], vector: int) -> tuple[int, bool, bool]:
    """Return how the rows of all `matrices` can be accessed in aligned vectors of `vector` columns.

    Returns:
        lead: Number of columns of row 0 before its first aligned vector.
        aligned: True if that column is the same in all matrices, for each row.
        edges: True if, then, some rows begin or end between two vectors.
    """
    leads = {-(x.data_ptr() // x.element_size()) % vector for x in matrices}
    strides = {x.stride(0) % vector for x in matrices}
    aligned = len(leads) == len(strides) == 1
    lead = leads.pop()
    edges = aligned and (lead != 0 or strides != {0} or matrices[0].shape[1] % vector != 0)
    return lead, aligned, edges


def _launch(
    function: Any, count: int, arguments: tuple[Any, ...], constants: dict[str, Any], shapes: tuple[Any, ...]
) -> None:
    """Launch `count` programs of a kernel on the current device.

    Triton's own launch takes longer than the kernel of a small call, because it looks at each argument to find the
    compiled kernel. Here a key finds it: `shapes`, what else an argument can change in the code, and `constants`.
    """
    kinds = (x.dtype if isinstance(x, Tensor) else x is None for x in arguments)
    key = (id(function), *shapes, *kinds, *constants.values())
    if key in _compiled:
        compiled, *values = _compiled[key]
        compiled[count, 1, 1](*arguments, *values)
        return
    compiled = function[(count,)](*arguments, **constants)
    if compiled is not None:  # what the interpreter returns
        _compiled[key] = compiled, *(constants[name] for name in function.arg_names if name in constants)


def _guard(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which `device` is the current GPU: Triton launches on that one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@cache
def _target(device: torch.device) -> GPUTarget:
    """Return the current GPU, which is `device`, as a target of the compiler."""
    return driver.active.get_current_target() if isinstance(kernel, triton.JITFunction) else INTERPRETED


@lru_cache
def _halves(number: float) -> tuple[float, float]:
    """Return two float32 numbers whose sum is `number` in double precision; Triton passes floats as float32."""
    high = ctypes.c_float(number).value
    return high, number - high


@triton.jit(do_not_specialize_on_alignment=["factors"])
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
