"""The codistillation loss: cross-entropy plus the divergence from the mean prediction of the teachers.

Source: Anil et al., "Large scale distributed neural network training through online distillation",
ICLR 2018 (arXiv 1804.03235), section 2 and algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor, nn

from hpcdistill.kernels.rows import compute_dtype
from hpcdistill.losses import ops
from hpcdistill.losses.checks import (
    as_sequence,
    as_weights,
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
from hpcdistill.losses.options import LossOptions
from hpcdistill.losses.reduction import LossParts, Reduction

if TYPE_CHECKING:
    from typing import Unpack  # Python 3.11


@overload
def codistillation_loss(
    logits: Tensor,
    target: Tensor,
    teacher_logits: Tensor | Iterable[Tensor] | None = None,
    *,
    teacher_lse: Tensor | None = None,
    inplace_grad: bool = False,
    return_parts: Literal[False] = False,
    **options: Unpack[LossOptions],
) -> Tensor: ...
@overload
def codistillation_loss(
    logits: Tensor,
    target: Tensor,
    teacher_logits: Tensor | Iterable[Tensor] | None = None,
    *,
    teacher_lse: Tensor | None = None,
    inplace_grad: bool = False,
    return_parts: Literal[True],
    **options: Unpack[LossOptions],
) -> tuple[Tensor, LossParts]: ...
def codistillation_loss(
    logits: Tensor,
    target: Tensor,
    teacher_logits: Tensor | Iterable[Tensor] | None = None,
    *,
    distill_weight: float = 1.0,
    temperature: float = 1.0,
    teacher_weights: Iterable[float] | None = None,
    teacher_lse: Tensor | None = None,
    class_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    z_loss: float = 0.0,
    reduction: str = "mean",
    normalizer: float | Tensor | None = None,
    inplace_grad: bool = False,
    implementation: str = "auto",
    check_target: bool = False,
    return_parts: bool = False,
) -> Tensor | tuple[Tensor, LossParts]:
    """Compute the cross-entropy plus the divergence from the mean prediction of the teachers.

    Per row, ``CE(target, logits) + distill_weight * T**2 * KL(mean_j softmax(teacher_j / T) || softmax(logits / T))
    + z_loss * logsumexp(logits)**2`` with ``T = temperature``. The mean is a mean of probabilities, as in the paper.
    The temperature does not apply to the cross-entropy, and only `distill_weight` and T**2 scale the divergence.
    Without teachers, or with ``distill_weight=0``, the loss is plain cross-entropy. Teachers receive no gradient.

    The forward computes the gradient, and the backward returns it. Therefore each call allows one backward and no
    second derivative. Transforms of torch.func (grad, jvp, vmap …) and forward-mode differentiation are refused.
    Memory: one tensor of the size of `logits`; none with `inplace_grad`.

    Args:
        logits: Logits of the student, ``[..., V]``; float64, float32, bfloat16 or float16. Arithmetic is in float64
            for float64 logits and in float32 otherwise. Logits (the teachers' too) that can be viewed as ``[rows, V]``
            with adjacent columns, such as a slice of a padded vocabulary, are used in place; others are copied.
        target: Labels ``[...]``, int64, each in ``[0, V)`` or equal to `ignore_index`. Other labels raise on a CPU.
            On a GPU, which is never synchronized, they make the loss and the gradient of their row NaN (see
            `check_target`).
        teacher_logits: ``[N, ..., V]``, or any iterable of N tensors ``[..., V]``; N may be 0. They have the dtype and
            the device of `logits`. Tensors of inference mode are accepted, for labels and options too.
        distill_weight: Weight of the divergence, >= 0. It may change from step to step.
        temperature: T > 0, of the divergence only.
        teacher_weights: N weights >= 0 of the teachers in the mean; they are normalized to sum to 1. A teacher whose
            weight is 0 is not read.
        teacher_lse: ``[N, ...]``, logsumexp(teacher_j / T) if it is known: this saves work on a GPU. float64 for
            float64 logits, else float32. Its rounding, ``|lse| * 6e-8``, is a relative error of the probabilities.
        class_weight: ``[V]``, any floating dtype, >= 0; the `weight` of `torch.nn.functional.cross_entropy`. It applies
            to the cross-entropy only.
        label_smoothing: As in `torch.nn.functional.cross_entropy`, in [0, 1]. It applies to the cross-entropy only.
        ignore_index: Label of rows that contribute to no term and receive no gradient.
        z_loss: Weight of the squared logsumexp, which keeps the logsumexp near 0 (Chowdhery et al., "PaLM", arXiv
            2204.02311, section 5).
        reduction: "mean" over the rows that are not ignored (0 if there are none), "sum", or "none". With
            `class_weight`, "mean" divides the cross-entropy by the sum of the weights of its labels, as torch does, and
            the other terms by the number of rows.
        normalizer: Number or 0-d tensor > 0 by which "mean" divides instead. For gradient accumulation, pass the number
            of labels in all micro-batches together.
        inplace_grad: If true, the gradient overwrites `logits`, which no other operation may need afterwards (autograd
            raises if one of its own saved tensors is overwritten). No effect under torch.compile, which plans memory
            itself.
        implementation: "auto", or a name: "cpu" (C++) on CPUs; "triton" or "cuda" (C++ with thread-block clusters,
            compute capability 9.0) on NVIDIA GPUs; "torch" on any device. "auto" takes the first that is installed of
            cpu and torch, or of triton and torch; if that fails, torch, with a warning.
        check_target: If true, a label out of range on a GPU fails an assertion there, some time later.
        return_parts: If true, return ``(loss, LossParts)``.

    Returns:
        A scalar, or ``[...]`` for "none" (0 in ignored rows); float64 for float64 logits, else float32. With
        `return_parts`, a tuple of the loss and its `LossParts`.

    Raises:
        TypeError: An argument has the wrong type or dtype, or is a DTensor.
        ValueError: Shapes or devices differ, V = 0, a number or a label is out of its range, a tensor (of an option
            too) requires grad or has a tangent but would receive no derivative, or arguments exclude each other. The
            message names the argument.
        ImportError: The implementation is not installed.
        NotImplementedError: The call is inside a transform of torch.func, or `logits` has a tangent.
        RuntimeError: In the backward: it is differentiated (``create_graph=True``), or is the second one of this call.
    """
    check_derivatives(logits=logits)
    teachers = as_sequence(teacher_logits)
    check_tensors(logits, target, teachers, class_weight)
    check_numbers(distill_weight, temperature, label_smoothing, z_loss)
    weights = as_weights(teacher_weights, len(teachers))
    check_teacher_lse(logits, len(teachers), teacher_lse)
    check_reduction(logits, reduction, normalizer)
    check_implementation("logits", logits, implementation)
    check_inplace(logits, inplace_grad)

    labels, real = target.reshape(-1).contiguous(), compute_dtype(logits.dtype)
    if check_target and target.is_cuda:
        assert_in_range(labels, ignore_index, logits.shape[-1])
    if class_weight is not None:
        class_weight = class_weight.to(real).contiguous()
    reduced = Reduction.create(reduction, labels, ignore_index, class_weight, normalizer, logits.dtype)
    # A weight of 0 means burn-in: the teachers may then hold infinities, and 0 * inf would be NaN.
    active = mixture(weights) if distill_weight else {}

    losses, parts = _row_losses(
        _as_rows(logits),
        labels,
        [_as_rows(teachers[j]) for j in active],
        list(active.values()),
        torch.stack([teacher_lse[j].reshape(-1) for j in active]) if active and teacher_lse is not None else None,
        class_weight,
        reduced.scales(distill_weight, z_loss),
        float(temperature),
        float(label_smoothing),
        ignore_index,
        implementation,
        inplace_grad=inplace_grad,
    )
    loss = losses.view(target.shape) if reduction == "none" else reduced.loss(losses.sum())
    return (loss, reduced.parts(parts, target.shape)) if return_parts else loss


class CodistillationLoss(nn.Module):
    """Module form of `codistillation_loss`, which explains the options.

    `distill_weight` is an attribute that may change during training, and `class_weight` a buffer, which moves with the
    module.
    """

    class_weight: Tensor | None

    def __init__(
        self,
        *,
        distill_weight: float = 1.0,
        temperature: float = 1.0,
        teacher_weights: Sequence[float] | None = None,
        class_weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        z_loss: float = 0.0,
        reduction: str = "mean",
        inplace_grad: bool = False,
        implementation: str = "auto",
        check_target: bool = False,
        return_parts: bool = False,
    ) -> None:
        super().__init__()
        self.distill_weight = distill_weight
        self.register_buffer("class_weight", class_weight)
        self.options: dict[str, Any] = {
            "temperature": temperature,
            "teacher_weights": teacher_weights,
            "label_smoothing": label_smoothing,
            "ignore_index": ignore_index,
            "z_loss": z_loss,
            "reduction": reduction,
            "inplace_grad": inplace_grad,
            "implementation": implementation,
            "check_target": check_target,
            "return_parts": return_parts,
        }

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        teacher_logits: Tensor | Iterable[Tensor] | None = None,
        *,
        teacher_lse: Tensor | None = None,
        normalizer: float | Tensor | None = None,
    ) -> Tensor | tuple[Tensor, LossParts]:
        """Compute the loss of one batch."""
        loss: Tensor | tuple[Tensor, LossParts] = codistillation_loss(
            logits,
            target,
            teacher_logits,
            distill_weight=self.distill_weight,
            class_weight=self.class_weight,
            teacher_lse=teacher_lse,
            normalizer=normalizer,
            **self.options,
        )
        return loss

    def extra_repr(self) -> str:
        """Return the options for `repr` of the module."""
        shown = {"distill_weight": self.distill_weight, **self.options}
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())


def _row_losses(logits: Tensor, *arguments: Any, inplace_grad: bool) -> tuple[Tensor, Tensor]:
    """Return the losses and parts of `Rows` for `logits` ``[rows, V]``."""
    with_gradient = logits.requires_grad and torch.is_grad_enabled()
    if inplace_grad and with_gradient and not torch.compiler.is_compiling():
        losses, parts = ops.InPlace.apply(logits, *arguments)  # type: ignore[no-untyped-call]
    else:
        losses, parts, _ = ops.codistillation(logits, *arguments, with_gradient)
    return losses, parts


def _as_rows(logits: Tensor) -> Tensor:
    """Return `logits` as ``[rows, V]`` with adjacent columns, as a view if possible."""
    rows = logits.reshape(-1, logits.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()
