"""The codistillation loss: cross-entropy plus the divergence from the teachers' averaged prediction.

Source: Anil et al., "Large scale distributed neural network training through online distillation",
ICLR 2018 (arXiv 1804.03235), section 2 and algorithm 1.
"""

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from hpcdistill.kernels.rows import compute_dtype
from hpcdistill.losses import ops
from hpcdistill.losses.checks import (
    as_sequence,
    as_shares,
    assert_in_range,
    check_derivatives,
    check_implementation,
    check_inplace,
    check_numbers,
    check_reduction,
    check_teacher_lse,
    check_tensors,
    mixture,
)
from hpcdistill.losses.reduction import Reduction


def codistillation_loss(
    logits: Tensor,
    target: Tensor,
    teacher_logits: Tensor | Iterable[Tensor] | None = None,
    *,
    weight: float = 1.0,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
    class_weight: Tensor | None = None,
    z_loss: float = 0.0,
    ignore_index: int = -100,
    teacher_weights: Iterable[float] | None = None,
    teacher_lse: Tensor | None = None,
    reduction: str = "mean",
    normalizer: float | Tensor | None = None,
    inplace_grad: bool = False,
    implementation: str = "auto",
    check_target: bool = False,
    return_parts: bool = False,
) -> Any:
    """Cross-entropy to the labels plus distillation towards the mean prediction of the teachers.

    Per row, ``CE(target, logits) + weight * T**2 * KL(mean_j softmax(teacher_j / T) || softmax(logits / T))
    + z_loss * logsumexp(logits)**2`` with ``T = temperature``. The mean is one of probabilities, as in the paper.
    The cross-entropy is never tempered, and nothing but `weight` and T**2 scales the divergence. Without teachers,
    or with ``weight=0``, it is plain cross-entropy. Teachers get no gradient.

    The gradient is made in the forward and handed on by the backward, so there can be one backward only for a call,
    and no second derivative; transforms of torch.func (grad, jvp, vmap …) and forward-mode differentiation are refused.
    Memory: one tensor like `logits`; none with `inplace_grad`.

    Args:
        logits: the student's, ``[..., V]``; float64, float32, bfloat16 or float16. Arithmetic is in float64 for
            float64 and in float32 otherwise. Like the teachers' they are used as they lie if they can be viewed as
            ``[rows, V]`` with adjacent columns (a slice of a padded vocabulary can), and copied otherwise.
        target: labels ``[...]``, int64, each in ``[0, V)`` or equal to `ignore_index`. On a CPU others raise; on a
            GPU, which is not waited for, they make their row's loss and gradient NaN (see `check_target`).
        teacher_logits: ``[N, ..., V]``, or N tensors ``[..., V]`` from a list or a generator; N may be 0. Same dtype
            and device as `logits`. Tensors of inference mode will do, as for labels and options.
        weight: of the divergence; a plain number, so that it may change with the step.
        temperature: T, of the divergence only.
        label_smoothing: as in `torch.nn.functional.cross_entropy`, of the cross-entropy only.
        class_weight: ``[V]``, any floating dtype, >= 0; what is called `weight` there, of the cross-entropy only.
        z_loss: of the squared logsumexp, which it keeps near 0 (Chowdhery et al., "PaLM", arXiv 2204.02311, section 5).
        ignore_index: rows with this label add nothing to any term, and get no gradient.
        teacher_weights: N shares in the mean, normalised to sum to 1; a teacher whose share is 0 is not looked at.
        teacher_lse: ``[N, ...]``, logsumexp(teacher_j / T) where it is known: it saves a GPU work. float64 for
            float64 logits, else float32. Its rounding, ``|lse| * 6e-8``, is a relative error of the probabilities.
        reduction: "mean" over the rows that are not ignored (0 if there are none), "sum", or "none". With
            `class_weight`, "mean" divides the cross-entropy by the sum of its labels' weights, as torch does, and the
            other terms by the number of rows.
        normalizer: a number or 0-d tensor > 0 that "mean" divides by instead: for gradient accumulation, the count of
            labels in all the batches together.
        inplace_grad: let the gradient overwrite `logits`, which nothing else may need afterwards (autograd notices if
            its own saved tensors do). Under torch.compile, which plans memory itself, it changes nothing.
        implementation: "auto", or one by name: "cpu" (C++) on CPUs, "triton" or "cuda" (C++, thread-block clusters,
            compute capability 9.0) on NVIDIA GPUs, "torch" anywhere. "auto" takes the first that is there of cpu
            and torch, or of triton and torch.
        check_target: look for labels out of range on a GPU, too: an assertion that fails there some time later.
        return_parts: return ``(loss, LossParts)``.

    Returns:
        A scalar, or ``[...]`` for "none" (0 in ignored rows); float64 for float64 logits, else float32. With
        `return_parts` a tuple of it and `LossParts`.

    Raises:
        TypeError: an argument of the wrong type or dtype, or a DTensor.
        ValueError: shapes or devices that differ, V = 0, a number out of its range, a target out of range, a tensor
            (of an option, too) that requires grad or has a tangent and would get no derivative, or arguments that
            exclude each other; the message names them.
        ImportError: the implementation that was asked for is not installed.
        NotImplementedError: inside a transform of torch.func, or for `logits` with a tangent.
        RuntimeError: in the backward, for a second derivative (``create_graph=True``) or a second backward.
    """
    check_derivatives(logits=logits)
    teachers = as_sequence(teacher_logits)
    check_tensors(logits, target, teachers, class_weight)
    check_numbers(weight, temperature, label_smoothing, z_loss)
    shares = as_shares(len(teachers), teacher_weights)
    check_teacher_lse(logits, len(teachers), teacher_lse)
    check_reduction(logits, reduction, normalizer)
    check_implementation("logits", logits, implementation)
    check_inplace(logits, inplace_grad)

    labels, real = target.reshape(-1).contiguous(), compute_dtype(logits.dtype)
    if check_target and target.is_cuda:
        assert_in_range(labels, ignore_index, logits.shape[-1])
    if class_weight is not None:
        class_weight = class_weight.to(real).contiguous()
    reduced = Reduction.of(reduction, labels, ignore_index, class_weight, normalizer, logits.dtype)
    # A weight of zero means burn-in: the teachers may then hold anything, and 0 * inf would be NaN.
    believed = mixture(shares) if weight else {}

    losses, parts = _row_losses(
        _as_rows(logits),
        labels,
        [_as_rows(teachers[j]) for j in believed],
        list(believed.values()),
        torch.stack([teacher_lse[j].reshape(-1) for j in believed]) if believed and teacher_lse is not None else None,
        class_weight,
        reduced.scales(weight, z_loss),
        float(temperature),
        float(label_smoothing),
        ignore_index,
        implementation,
        inplace_grad=inplace_grad,
    )
    loss = losses.view(target.shape) if reduction == "none" else reduced.loss(losses.sum())
    return (loss, reduced.parts(parts, target.shape)) if return_parts else loss


class CodistillationLoss(nn.Module):
    """`codistillation_loss` with its options kept; see there for what they mean.

    `weight` is an attribute, to be changed as training goes on, and `class_weight` a buffer, which moves with the
    module.
    """

    class_weight: Tensor | None

    def __init__(self, *, weight: float = 1.0, class_weight: Tensor | None = None, **options: Any) -> None:
        super().__init__()
        known = inspect.signature(codistillation_loss).parameters.keys() - inspect.signature(self.forward).parameters
        if unknown := options.keys() - known:
            raise TypeError(f"CodistillationLoss has no option {min(unknown)!r}; it has {', '.join(sorted(known))}")
        self.weight = weight
        self.register_buffer("class_weight", class_weight)
        self.options = options

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        teacher_logits: Tensor | Iterable[Tensor] | None = None,
        *,
        teacher_lse: Tensor | None = None,
        normalizer: float | Tensor | None = None,
    ) -> Any:
        """The loss of one batch."""
        return codistillation_loss(
            logits,
            target,
            teacher_logits,
            weight=self.weight,
            class_weight=self.class_weight,
            teacher_lse=teacher_lse,
            normalizer=normalizer,
            **self.options,
        )

    def extra_repr(self) -> str:
        """For `print(model)`."""
        return ", ".join(f"{name}={value!r}" for name, value in {"weight": self.weight, **self.options}.items())


def _row_losses(logits: Tensor, *arguments: Any, inplace_grad: bool) -> tuple[Tensor, Tensor]:
    """Losses and parts of `Rows`; `logits` ``[rows, V]``."""
    with_gradient = logits.requires_grad and torch.is_grad_enabled()
    if inplace_grad and with_gradient and not torch.compiler.is_compiling():
        losses, parts = ops.InPlace.apply(logits, *arguments)  # type: ignore[no-untyped-call]
    else:
        losses, parts, _ = ops.codistillation(logits, *arguments, with_gradient)
    return losses, parts


def _as_rows(logits: Tensor) -> Tensor:
    """``[rows, V]`` with adjacent columns; a view where it can be."""
    rows = logits.reshape(-1, logits.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()
