"""The codistillation loss of models with one logit, such as click-through models."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional

from hpcdistill.kernels.rows import compute_dtype
from hpcdistill.losses.checks import (
    as_sequence,
    as_shares,
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
    weight: float = 1.0,
    temperature: float = 1.0,
    teacher_weights: Iterable[float] | None = None,
    reduction: str = "mean",
    normalizer: float | Tensor | None = None,
) -> Tensor:
    """Binary cross-entropy plus distillation towards the mean probability of the teachers.

    For each logit, ``BCE(target, logit) + weight * T**2 * KL(mean_j sigmoid(teacher_j / T) || sigmoid(logit / T))``
    with ``T = temperature``; the divergence is that of two Bernoulli distributions. It is what `codistillation_loss`
    gives for the two logits ``[0, logit]``. Teachers get no gradient. Without teachers, or with ``weight=0``, it is
    plain binary cross-entropy. Made of torch's own operators, which torch.compile fuses; a second derivative exists,
    and so do a forward-mode one and the transforms of torch.func.

    Args:
        logits: the student's, any shape; a floating dtype. Arithmetic is in float64 for float64 and in float32
            otherwise.
        target: the labels, of the same shape and device: probabilities in [0, 1], of any dtype. The range is checked
            on a CPU, but not inside torch.compile or a transform of torch.func.
        teacher_logits: ``[N, ...]``, or N tensors ``[...]`` like `logits` from a list or a generator; N may be 0.
        weight: as in `codistillation_loss`.
        temperature: as there.
        teacher_weights: as there.
        reduction: "mean", "sum", or "none".
        normalizer: a number or 0-d tensor > 0 that "mean" divides by instead of the number of logits.

    Returns:
        A scalar (0 for no logits at all), or ``[...]`` for "none"; float64 for float64 logits, else float32.

    Raises:
        TypeError, ValueError: as `codistillation_loss`.
    """
    teachers = as_sequence(teacher_logits)
    check_binary_target(target, logits)
    check_teachers(teachers, logits)
    check_numbers(weight, temperature)
    shares = as_shares(len(teachers), teacher_weights)
    check_reduction(logits, reduction, normalizer)

    real = compute_dtype(logits.dtype)
    weight, temperature, target = float(weight), float(temperature), _for_backward(target.to(real))
    losses = functional.binary_cross_entropy_with_logits(logits.to(real), target, reduction="none")
    believed = mixture(shares) if weight else {}
    if believed:
        softened, student = [teachers[j].to(real) / temperature for j in believed], logits.to(real) / temperature
        divergence = sum(
            _divergence_part([sign * t for t in softened], list(believed.values()), sign * student) for sign in (1, -1)
        )
        losses = losses + weight * temperature**2 * divergence
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    if isinstance(normalizer, Tensor):
        normalizer = _for_backward(normalizer)
    return losses.sum() / (max(logits.numel(), 1) if normalizer is None else normalizer)


def _for_backward(tensor: Tensor) -> Tensor:
    """Return `tensor`, or a copy where autograd would refuse to save it; a compiler cannot tell."""
    return tensor if torch.compiler.is_compiling() or not tensor.is_inference() else tensor.clone()


def _divergence_part(teachers: list[Tensor], shares: list[float], student: Tensor) -> Tensor:
    """``m * (log(m) - log(sigmoid(student)))`` for the teachers' mean probability m of one outcome."""
    terms = [functional.logsigmoid(t) + math.log(share) for t, share in zip(teachers, shares, strict=True)]
    log_mean = torch.stack(terms).logsumexp(0)
    term = log_mean.exp() * (log_mean - functional.logsigmoid(student))
    return term.where(log_mean > -torch.inf, 0)  # what no teacher believes in adds nothing
