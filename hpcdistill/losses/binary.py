"""The codistillation loss of models with one logit, such as click-through models."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional

from hpcdistill.kernels.rows import compute_dtype
from hpcdistill.losses.checks import (
    as_sequence,
    as_weights,
    check_binary_target,
    check_numbers,
    check_reduction,
    check_teachers,
    mixture,
)


def binary_codistillation_loss(
    logits: Tensor,
    target: Tensor,
    teacher_logits: Tensor | Iterable[Tensor] | None = None,
    *,
    distill_weight: float = 1.0,
    temperature: float = 1.0,
    teacher_weights: Iterable[float] | None = None,
    reduction: str = "mean",
    normalizer: float | Tensor | None = None,
) -> Tensor:
    """Compute the binary cross-entropy plus the divergence from the mean probability of the teachers.

    For each logit, ``BCE(target, logit) + distill_weight * T**2 * KL(mean_j sigmoid(teacher_j / T) ||
    sigmoid(logit / T))`` with ``T = temperature``; the divergence is that of two Bernoulli distributions. The result is
    that of `codistillation_loss` for the two logits ``[0, logit]``. Teachers receive no gradient. Without teachers, or
    with ``distill_weight=0``, the loss is plain binary cross-entropy. It consists of torch's own operators, which
    torch.compile fuses. Second and forward-mode derivatives exist, and the transforms of torch.func work.

    Args:
        logits: Logits of the student, any shape and floating dtype. Arithmetic is in float64 for float64 logits and in
            float32 otherwise.
        target: Labels of the same shape and device: probabilities in [0, 1], of any dtype. The range is checked on a
            CPU, except inside torch.compile and transforms of torch.func.
        teacher_logits: ``[N, ...]``, or any iterable of N tensors ``[...]``, of the shape, dtype and device of
            `logits`; N may be 0.
        distill_weight: As in `codistillation_loss`.
        temperature: As there.
        teacher_weights: As there.
        reduction: "mean", "sum", or "none".
        normalizer: Number or 0-d tensor > 0 by which "mean" divides instead of the number of logits.

    Returns:
        A scalar (0 if there are no logits), or ``[...]`` for "none"; float64 for float64 logits, else float32.

    Raises:
        TypeError, ValueError: As `codistillation_loss`.
    """
    teachers = as_sequence(teacher_logits)
    check_binary_target(target, logits)
    check_teachers(teachers, logits)
    check_numbers(distill_weight, temperature)
    weights = as_weights(teacher_weights, len(teachers))
    check_reduction(logits, reduction, normalizer)

    real = compute_dtype(logits.dtype)
    distill_weight, temperature, target = float(distill_weight), float(temperature), _for_backward(target.to(real))
    losses = functional.binary_cross_entropy_with_logits(logits.to(real), target, reduction="none")
    active = mixture(weights) if distill_weight else {}
    if active:
        softened, student = [teachers[j].to(real) / temperature for j in active], logits.to(real) / temperature
        divergence = sum(
            _divergence_part([sign * t for t in softened], list(active.values()), sign * student) for sign in (1, -1)
        )
        losses = losses + distill_weight * temperature**2 * divergence
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    if isinstance(normalizer, Tensor):
        normalizer = _for_backward(normalizer)
    return losses.sum() / (max(logits.numel(), 1) if normalizer is None else normalizer)


def _for_backward(tensor: Tensor) -> Tensor:
    """Return `tensor`, or a copy of one that autograd refuses to save (one of inference mode); not under a compiler."""
    return tensor if torch.compiler.is_compiling() or not tensor.is_inference() else tensor.clone()


def _divergence_part(teachers: list[Tensor], shares: list[float], student: Tensor) -> Tensor:
    """Return ``m * (log(m) - log(sigmoid(student)))`` for the teachers' mean probability m of one outcome."""
    terms = [functional.logsigmoid(t) + math.log(share) for t, share in zip(teachers, shares, strict=True)]
    log_mean = torch.stack(terms).logsumexp(0)
    term = log_mean.exp() * (log_mean - functional.logsigmoid(student))
    return term.where(log_mean > -torch.inf, 0)  # 0 * -inf would be NaN
