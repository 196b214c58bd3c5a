"""GEMMs of the linear loss: the logits of a head, scaled and capped, and products that are added to a gradient."""

import warnings
from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

from hpcdistill.kernels.rows import compute_dtype

TILE = 8192
"""Number of rows of a head, or columns of logits, that are converted at a time, if another dtype is needed."""


def fill_logits(
    logits: Tensor,
    hidden: Tensor,
    weight: Tensor,
    weight_scale: Tensor | None,
    bias: Tensor | None,
    scale: float,
    softcap: float | None,
) -> None:
    """Set `logits` to ``z = scale * (hidden @ weight.T * weight_scale + bias)``, or ``softcap * tanh(z / softcap)``."""
    dtype = factor_dtype(hidden.dtype, logits.dtype, logits.device)
    hidden = hidden.to(dtype)
    for tile in tiles(len(weight), whole=weight.dtype == dtype):
        add_product(logits[:, tile], hidden, weight[tile].to(dtype).t(), beta=0, alpha=scale)
    if weight_scale is not None:
        logits.mul_(weight_scale)
    if bias is not None:
        logits.add_(bias, alpha=scale)
    if softcap is not None:
        for columns in _tiled(logits):
            capped = _as_real(columns).div_(softcap).tanh_().mul_(softcap)
            if capped.dtype != columns.dtype:
                columns.copy_(capped)


def multiply_by_derivative(gradient: Tensor, logits: Tensor, softcap: float) -> None:
    """Multiply `gradient` by ``1 - (logits / softcap)**2``, the derivative of the cap, and overwrite `logits`."""
    for columns, part in zip(_tiled(gradient), _tiled(logits), strict=True):
        columns.addcmul_(columns, _as_real(part).div_(softcap).square_(), value=-1)


def _tiled(logits: Tensor) -> Iterator[Tensor]:
    """Return all columns at once, or a tile at a time if they are to be converted by `_as_real`."""
    return (logits[:, tile] for tile in tiles(logits.shape[1], whole=logits.dtype == compute_dtype(logits.dtype)))


def _as_real(logits: Tensor) -> Tensor:
    """Return `logits` in the dtype of arithmetic; with 16 bits the difference to the cap would be lost."""
    return logits.to(compute_dtype(logits.dtype))


def tiles(count: int, whole: bool) -> Iterator[slice]:
    """Return slices of `TILE` that cover ``range(count)``, or a single one."""
    step = count if whole else TILE
    return (slice(begin, begin + step) for begin in range(0, count, step))


def add_product(out: Tensor, left: Tensor, right: Tensor, beta: int = 1, alpha: float = 1.0) -> None:
    """Set `out` to ``beta * out + alpha * left @ right``; the factors may have a narrower dtype."""
    dtype = factor_dtype(left.dtype, out.dtype, out.device)
    left, right = left.to(dtype), right.to(dtype)
    if dtype == out.dtype:
        out.addmm_(left, right, beta=beta, alpha=alpha)
    elif torch.__version__ >= "2.10":
        torch.addmm(out, left, right, out_dtype=out.dtype, beta=beta, alpha=alpha, out=out)
    elif beta:  # before torch 2.10 addmm wants `out` in the dtype of the factors
        out.add_(torch.mm(left, right, out_dtype=out.dtype), alpha=alpha)
    else:
        torch.mm(left, right, out_dtype=out.dtype, out=out)
        if alpha != 1:
            out.mul_(alpha)


def factor_dtype(dtype: torch.dtype, out: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the dtype of a GEMM's factors for a result of dtype `out`: `dtype` if the products then lose no bits."""
    widens = dtype.itemsize == 2 and out == torch.float32 and _widens(device.type)
    return dtype if widens else out


@cache
def _widens(device: str) -> bool:
    """Return whether a GEMM of 16-bit matrices can have a float32 result: true on GPUs, with a recent torch."""
    if device == "cuda" and "dtype_out" not in torch.ops.aten.mm.overloads():
        warnings.warn(
            f"linear_codistillation_loss multiplies in float32 here, which is slow: torch {torch.__version__} has no"
            " GEMM from 16 to 32 bits; install torch 2.10 or newer",
            stacklevel=1,
        )
        return False
    return device == "cuda"
