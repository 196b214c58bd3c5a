"""The codistillation loss: cross-entropy plus the divergence from the teachers' averaged prediction.

Source: Anil et al., "Large scale distributed neural network training through online distillation",
ICLR 2018 (arXiv 1804.03235), section 2 and algorithm 1.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_REDUCTIONS = ("none", "mean", "sum")
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def codistillation_loss(
    logits: Tensor,
    target: Tensor,
    teacher_logits: Tensor | Sequence[Tensor] | None = None,
    *,
    weight: float = 1.0,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy to the labels plus distillation towards the mean prediction of the teachers.

    Per row, ``CE(target, logits) + weight * T**2 * KL(mean_j softmax(teacher_j / T) || softmax(logits / T))``
    with ``T = temperature``. The mean is one of probabilities, as in the paper. The cross-entropy is
    never tempered, and nothing but `weight` and T**2 scales the divergence. Without teachers, or with
    ``weight=0``, it is plain cross-entropy. Teachers get no gradient.

    Args:
        logits: the student's, ``[..., V]``; float64, float32, bfloat16 or float16. Arithmetic is in
            float64 for float64 and in float32 otherwise.
        target: labels ``[...]``, int64, each in ``[0, V)`` or equal to `ignore_index`. The range is
            checked on the CPU; on a GPU, where a check would stall the stream, it is the caller's duty.
        teacher_logits: ``[N, ..., V]``, or a sequence of N tensors ``[..., V]``; N may be 0. Same dtype
            and device as `logits`.
        weight: of the divergence; a plain number, so that it may change with the step.
        temperature: T, of the divergence only.
        label_smoothing: as in `torch.nn.functional.cross_entropy`; does not touch the divergence.
        ignore_index: rows with this label add neither cross-entropy nor divergence nor gradient.
        reduction: "mean" over the rows that are not ignored (0 if there are none), "sum", or "none".

    Returns:
        A scalar, or ``[...]`` for "none" (0 in ignored rows); float64 for float64 logits, else float32.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes or devices that differ, V = 0, a number out of its range, a target out of
            range, or a teacher that requires grad.
        RuntimeError: a second derivative is asked for (``create_graph=True``).
    """
    teachers = _as_sequence(teacher_logits)
    _check_tensors(logits, target, teachers)
    _check_numbers(weight, temperature, label_smoothing, reduction)
    classes = logits.shape[-1]
    _check_target(target, classes, ignore_index)
    rows = target.reshape(-1)
    losses: Tensor = _FusedLoss.apply(  # type: ignore[no-untyped-call]
        logits.reshape(-1, classes),
        rows,
        # A weight of zero means burn-in: the teachers may then hold anything, and 0 * inf would be NaN.
        [teacher.reshape(-1, classes) for teacher in teachers] if weight else [],
        weight,
        temperature,
        label_smoothing,
        ignore_index,
    )
    if reduction == "none":
        return losses.view(target.shape)
    if reduction == "sum":
        return losses.sum()
    return losses.sum() / (rows != ignore_index).sum().clamp(min=1)


class _FusedLoss(torch.autograd.Function):
    """Per-row losses; the gradient is made in the forward, while the row is at hand."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        logits = args[0]
        losses, gradient = (_triton_loss_and_gradient if logits.is_cuda else loss_and_gradient)(*args)
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # else a gradient penalty would take the gradient for a constant
            raise RuntimeError("codistillation_loss has no second derivative; leave create_graph=True out")
        (gradient,) = ctx.saved_tensors
        scaled = (gradient * grad_outputs[0].unsqueeze(-1)).to(gradient.dtype)
        return scaled, None, None, None, None, None, None


def _triton_loss_and_gradient(*args: Any) -> tuple[Tensor, Tensor]:
    from hpcdistill.kernels.triton_codistillation import loss_and_gradient  # Triton is a GPU's alone

    return loss_and_gradient(*args)


def loss_and_gradient(
    logits: Tensor,
    target: Tensor,
    teachers: list[Tensor],
    weight: float,
    temperature: float,
    label_smoothing: float,
    ignore_index: int,
) -> tuple[Tensor, Tensor]:
    """The reference, in torch: losses ``[rows]`` and their gradient ``[rows, V]`` (`logits`' dtype).

    Takes checked arguments: `logits` and each teacher ``[rows, V]``, `target` ``[rows]``.
    """
    rows, classes = logits.shape
    student = logits.to(compute_dtype(logits.dtype))
    ignored = target == ignore_index
    label = target.masked_fill(ignored, 0).unsqueeze(-1)

    log_p = student.log_softmax(-1)
    losses = -(1 - label_smoothing) * log_p.gather(-1, label).squeeze(-1)
    if label_smoothing:
        losses -= label_smoothing / classes * log_p.sum(-1)
    gradient = log_p.exp() - label_smoothing / classes
    gradient.scatter_add_(-1, label, gradient.new_full((rows, 1), label_smoothing - 1))

    if teachers:
        log_q = (student / temperature).log_softmax(-1)
        log_mean = _log_mean_probability([teacher.to(student.dtype) / temperature for teacher in teachers])
        mean = log_mean.exp()
        # A class that no teacher believes in adds nothing, though 0 * (-inf) is NaN.
        terms = torch.where(mean > 0, mean * (log_mean - log_q), 0.0)
        # A divergence is never negative; its rounding may be.
        losses += weight * temperature**2 * terms.sum(-1).clamp(min=0)
        gradient += weight * temperature * (log_q.exp() - mean)

    losses.masked_fill_(ignored, 0)
    gradient.masked_fill_(ignored.unsqueeze(-1), 0)
    return losses, gradient.to(logits.dtype)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the arithmetic and of the loss: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _log_mean_probability(teachers: list[Tensor]) -> Tensor:
    log_sum = torch.stack([teacher.log_softmax(-1) for teacher in teachers]).logsumexp(0)
    return log_sum - math.log(len(teachers))


def _as_sequence(teacher_logits: Tensor | Sequence[Tensor] | None) -> Sequence[Tensor]:
    if teacher_logits is None:
        return ()
    if not isinstance(teacher_logits, Tensor):
        return teacher_logits
    if teacher_logits.dim() == 0:
        raise ValueError("teacher_logits has no dimensions; pass [N, ..., V] or a list of N tensors [..., V]")
    return teacher_logits.unbind(0)


def _check_tensors(logits: Tensor, target: Tensor, teachers: Sequence[Tensor]) -> None:
    if logits.dtype not in _DTYPES:
        raise TypeError(f"logits has dtype {logits.dtype}; convert it to one of {', '.join(map(str, _DTYPES))}")
    if logits.dim() == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits has shape {list(logits.shape)}; pass [..., V] with at least one class (V >= 1)")
    if target.dtype != torch.int64:
        raise TypeError(f"target has dtype {target.dtype}; convert it by target.long()")
    if target.shape != logits.shape[:-1]:
        raise ValueError(
            f"target has shape {list(target.shape)}; logits of shape {list(logits.shape)}"
            f" need one label for each row, {list(logits.shape[:-1])}"
        )
    if target.device != logits.device:
        raise ValueError(f"target is on {target.device}; move it to logits' device, {logits.device}")
    for j, teacher in enumerate(teachers):
        _check_teacher(f"teacher_logits[{j}]", teacher, logits)


def _check_teacher(name: str, teacher: Tensor, logits: Tensor) -> None:
    if not isinstance(teacher, Tensor):
        raise TypeError(f"{name} is a {type(teacher).__name__}; pass a tensor of logits")
    if teacher.shape != logits.shape:
        raise ValueError(
            f"{name} has shape {list(teacher.shape)}; it must be logits' {list(logits.shape)}"
            " (a single teacher goes in a list, or as teacher.unsqueeze(0))"
        )
    if teacher.dtype != logits.dtype:
        raise TypeError(f"{name} has dtype {teacher.dtype}; convert it to logits' by .to({logits.dtype})")
    if teacher.device != logits.device:
        raise ValueError(f"{name} is on {teacher.device}; move it to logits' device, {logits.device}")
    if teacher.requires_grad:
        raise ValueError(f"{name} requires grad, and teachers get none; pass {name}.detach()")


def _check_numbers(weight: float, temperature: float, label_smoothing: float, reduction: str) -> None:
    if not 0 <= weight < math.inf:
        raise ValueError(f"weight is {weight}; pass a finite number >= 0 (0 turns distillation off)")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; pass a finite number > 0 (1 leaves the logits as they are)")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing is {label_smoothing}; pass a number in [0, 1]")
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}; pass one of {', '.join(_REDUCTIONS)}")


def _check_target(target: Tensor, classes: int, ignore_index: int) -> None:
    if target.device.type != "cpu":
        return
    wrong = target[((target < 0) | (target >= classes)) & (target != ignore_index)]
    if wrong.numel():
        raise ValueError(
            f"target holds {wrong[0].item()}; labels lie in [0, {classes}),"
            f" or equal ignore_index ({ignore_index}) to be skipped"
        )
