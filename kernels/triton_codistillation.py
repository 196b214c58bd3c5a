"""The fused codistillation loss as a Triton kernel: losses and gradient of a row in one launch.

One program per row. It takes the softmax sums of the student and of every teacher, then goes over the row
once more for the divergence and the gradient; offsets are 64-bit, arithmetic is float32 (float64 for
float64), and a row that is ignored is neither read nor computed.
"""

# Triton types its kernels' arguments itself.
# mypy: disable-error-code="untyped-decorator,no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 2048  # columns at a time: 8 per thread of 8 warps, so that nothing spills


@triton.jit
def _max_and_log_sum(row, V, scale, dtype: tl.constexpr, BLOCK: tl.constexpr):
    """The row's maximum, and log(sum(exp(scale * (row - maximum)))), in one pass.

    The log-probability of x is then (x - maximum) * scale - log_sum. With both in one number, their
    logsumexp, the sum would drown in the rounding of a large maximum: at 1e4 the probabilities would be
    wrong by 1e-3.
    """
    maximum = tl.full((), float("-inf"), dtype)
    total = tl.full((), 0.0, dtype)
    for start in range(0, V, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        x = tl.load(row + columns, mask=columns < V, other=float("-inf")).to(dtype)
        new = tl.maximum(maximum, tl.max(x, 0))
        finite = tl.where(new == float("-inf"), 0.0, new)  # -inf - (-inf) would be NaN
        total = total * tl.exp((maximum - finite) * scale) + tl.sum(tl.exp((x - finite) * scale), 0)
        maximum = new
    return maximum, tl.log(total)


@triton.jit
def _kernel(
    logits,  # [rows, V]
    target,  # [rows]
    teachers,  # a tuple of N, each [rows, V]
    losses,  # [rows]
    gradient,  # [rows, V]
    teacher_sums,  # [rows, N, 2], scratch: maximum and log-sum
    V,
    weight,
    temperature,
    label_smoothing,
    ignore_index,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
):
    dtype: tl.constexpr = losses.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    offset = row * V
    label = tl.load(target + row)
    if label == ignore_index:
        tl.store(losses + row, 0.0)
        for start in range(0, V, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            tl.store(gradient + offset + columns, 0.0, mask=columns < V)
        return

    weight = tl.full((), weight, dtype)
    temperature = tl.full((), temperature, dtype)
    label_smoothing = tl.full((), label_smoothing, dtype)
    sharpness = 1 / temperature
    maximum, log_sum = _max_and_log_sum(logits + offset, V, 1.0, dtype, BLOCK)
    tempered_log_sum = log_sum
    if N > 0:
        _, tempered_log_sum = _max_and_log_sum(logits + offset, V, sharpness, dtype, BLOCK)
    sums = teacher_sums + row * N * 2
    for j in tl.static_range(N):
        teacher_maximum, teacher_log_sum = _max_and_log_sum(teachers[j] + offset, V, sharpness, dtype, BLOCK)
        tl.store(sums + 2 * j, teacher_maximum)
        tl.store(sums + 2 * j + 1, teacher_log_sum)

    smooth = label_smoothing / V
    distance = tl.zeros((BLOCK,), dtype)  # sum of -log p: the smoothed part of the cross-entropy
    divergence = tl.zeros((BLOCK,), dtype)
    for start in range(0, V, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < V
        z = tl.load(logits + offset + columns, mask=inside, other=float("-inf")).to(dtype)
        below = z - maximum
        if label_smoothing > 0:
            distance += tl.where(inside, log_sum - below, 0.0)
        grad = tl.exp(below - log_sum) - smooth - tl.where(columns == label, 1 - label_smoothing, 0.0)
        if N > 0:
            mean = tl.zeros((BLOCK,), dtype)
            for j in tl.static_range(N):
                t = tl.load(teachers[j] + offset + columns, mask=inside, other=float("-inf")).to(dtype)
                mean += tl.exp((t - tl.load(sums + 2 * j)) * sharpness - tl.load(sums + 2 * j + 1))
            mean /= N
            log_q = below * sharpness - tempered_log_sum
            believed = mean > 0
            divergence += tl.where(believed, mean * (tl.log(tl.where(believed, mean, 1.0)) - log_q), 0.0)
            grad += weight * temperature * (tl.exp(log_q) - mean)
        tl.store(gradient + offset + columns, grad, mask=inside)

    z_label = tl.load(logits + offset + label).to(dtype)
    loss = (1 - label_smoothing) * (maximum - z_label + log_sum) + smooth * tl.sum(distance, 0)
    total = tl.sum(divergence, 0)
    clamped = tl.where(total < 0, 0.0, total)  # rounding alone makes it negative; NaN stays NaN
    loss += weight * temperature * temperature * clamped
    tl.store(losses + row, loss)


def loss_and_gradient(
    logits: Tensor,
    target: Tensor,
    teachers: list[Tensor],
    weight: float,
    temperature: float,
    label_smoothing: float,
    ignore_index: int,
) -> tuple[Tensor, Tensor]:
    """Losses ``[rows]`` and their gradient ``[rows, V]``, as `hpcdistill.loss.loss_and_gradient`.

    Strided input is copied to rows of adjacent columns first.
    """
    rows, V = logits.shape
    logits = logits.contiguous()
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    losses = torch.empty(rows, dtype=dtype, device=logits.device)
    gradient = torch.empty_like(logits)
    if rows:
        _kernel[(rows,)](
            logits,
            target.contiguous(),
            tuple(teacher.contiguous() for teacher in teachers),
            losses,
            gradient,
            losses.new_empty(rows, len(teachers), 2),
            V,
            float(weight),
            float(temperature),
            float(label_smoothing),
            ignore_index,
            N=len(teachers),
            BLOCK=min(_BLOCK, triton.next_power_of_2(V)),
            num_warps=8,
        )
    return losses, gradient
