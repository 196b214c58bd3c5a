"""The codistillation loss of hidden states: the logits of all tokens never exist at the same time.

Hsu et al., "Liger Kernel: Efficient Triton Kernels for LLM Training" (arXiv 2410.10989), section 3.2, multiply by the
head inside the cross-entropy in the same way, a chunk of tokens at a time.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Literal, overload

import torch
from torch import Tensor

from hpcdistill.kernels.rows import compute_dtype
from hpcdistill.losses.checks import (
    as_weights,
    assert_in_range,
    check_class_weight,
    check_derivatives,
    check_implementation,
    check_labels,
    check_numbers,
    check_reduction,
    mixture,
)
from hpcdistill.losses.linear_checks import (
    Weight,
    as_teachers,
    check_chunks,
    check_linear_teachers,
    check_student,
)
from hpcdistill.losses.linear_ops import linear_codistillation
from hpcdistill.losses.options import LossOptions
from hpcdistill.losses.reduction import LossParts, Reduction
from hpcdistill.losses.vocab_parallel import VocabParallel

if TYPE_CHECKING:
    from typing import Unpack  # Python 3.11


@overload
def linear_codistillation_loss(
    hidden: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    teacher_hidden: Tensor | Iterable[Tensor] | None = None,
    teacher_linear_weight: Tensor | Iterable[Weight] | None = None,
    *,
    linear_bias: Tensor | None = None,
    teacher_linear_bias: Tensor | Iterable[Tensor | None] | None = None,
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
    teacher_logit_scale: float | Iterable[float] = 1.0,
    teacher_logit_softcap: float | Iterable[float | None] | None = None,
    chunk_tokens: int | str = "auto",
    logits_dtype: torch.dtype | None = torch.float32,
    grad_weight_dtype: torch.dtype | None = torch.float32,
    vocab_parallel: VocabParallel | None = None,
    return_parts: Literal[False] = False,
    **options: Unpack[LossOptions],
) -> Tensor: ...
@overload
def linear_codistillation_loss(
    hidden: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    teacher_hidden: Tensor | Iterable[Tensor] | None = None,
    teacher_linear_weight: Tensor | Iterable[Weight] | None = None,
    *,
    linear_bias: Tensor | None = None,
    teacher_linear_bias: Tensor | Iterable[Tensor | None] | None = None,
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
    teacher_logit_scale: float | Iterable[float] = 1.0,
    teacher_logit_softcap: float | Iterable[float | None] | None = None,
    chunk_tokens: int | str = "auto",
    logits_dtype: torch.dtype | None = torch.float32,
    grad_weight_dtype: torch.dtype | None = torch.float32,
    vocab_parallel: VocabParallel | None = None,
    return_parts: Literal[True],
    **options: Unpack[LossOptions],
) -> tuple[Tensor, LossParts]: ...
def linear_codistillation_loss(
    hidden: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    teacher_hidden: Tensor | Iterable[Tensor] | None = None,
    teacher_linear_weight: Tensor | Iterable[Weight] | None = None,
    *,
    linear_bias: Tensor | None = None,
    teacher_linear_bias: Tensor | Iterable[Tensor | None] | None = None,
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
    teacher_logit_scale: float | Iterable[float] = 1.0,
    teacher_logit_softcap: float | Iterable[float | None] | None = None,
    distill_weight: float = 1.0,
    temperature: float = 1.0,
    teacher_weights: Iterable[float] | None = None,
    class_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    z_loss: float = 0.0,
    reduction: str = "mean",
    normalizer: float | Tensor | None = None,
    chunk_tokens: int | str = "auto",
    logits_dtype: torch.dtype | None = torch.float32,
    grad_weight_dtype: torch.dtype | None = torch.float32,
    vocab_parallel: VocabParallel | None = None,
    implementation: str = "auto",
    check_target: bool = False,
    return_parts: bool = False,
) -> Tensor | tuple[Tensor, LossParts]:
    """Compute `codistillation_loss` of the logits ``hidden @ linear_weight.T + linear_bias`` without storing them all.

    For a chunk of tokens at a time, GEMMs compute the logits of all models into buffers that are reused, the gradient
    overwrites the student's logits, and GEMMs add it to the gradients by `hidden`, `linear_weight` and `linear_bias`.
    Gradients by tensors that do not require grad, such as a frozen head, are not computed.

    On a GPU, the gradient of logits that are wider than `hidden` has the dtype of `hidden`, and a buffer of its own.

    For "mean" and "sum" the forward does all of this. Each call then allows one backward, which costs next to nothing.
    For "none" only the backward knows the upstream gradient of each row: it computes the chunks a second time, and the
    teachers' tensors are kept until then. There is no second derivative. Transforms of torch.func (grad, jvp, vmap …)
    and forward-mode differentiation are refused.

    With `logit_scale` s and `logit_softcap` c, the logits are ``c * tanh(s * (hidden @ linear_weight.T + linear_bias) /
    c)``, and the gradient has a buffer of its own, because the derivative of the cap is computed from these logits.

    The names of the student's tensors are those of `torch.nn.functional.linear_cross_entropy`.

    Args:
        hidden: Last hidden states of the student, ``[..., D]``; float64, float32, bfloat16 or float16. Those of ignored
            rows must be finite, as for `torch.nn.functional.linear`. Autocast casts them as it does there.
        linear_weight: Head of the student, ``[V, D]``; any of these dtypes and any strides (a tied or a sliced matrix
            works too). GEMMs multiply in the dtype of `hidden`; on a CPU, which cannot sum 16-bit products in float32,
            in the dtype of their result. A GPU copies wider heads to the dtype of `hidden`, once a call.
        target: Labels ``[...]``, int64; see `codistillation_loss`.
        teacher_hidden: ``[N, ..., D]``, or any iterable of N tensors ``[..., D_j]``; N may be 0. Each tensor may have
            its own dtype.
        teacher_linear_weight: N heads. Each is a tensor ``[V, D_j]`` of any of the dtypes above, or a tuple ``(int8 [V,
            D_j], float [V])`` of numbers and the scale of each row.
        linear_bias: Bias of the student, ``[V]``, any floating dtype.
        teacher_linear_bias: N biases ``[V]``, each of which may be None.
        logit_scale: Factor of the student's logits, > 0: ``logit_scale`` in the configuration of Cohere, ``1 /
            logits_scaling`` in that of Granite.
        logit_softcap: Soft cap of the student's logits, > 0, as in Gemma 2 (arXiv 2408.00118); None for no cap.
        teacher_logit_scale: Factor of the teachers' logits: a number for all of them, or an iterable of N numbers. The
            default is 1 whatever `logit_scale` is, because teachers may be of another family than the student.
        teacher_logit_softcap: Soft cap of the teachers' logits: a number or None for all of them, or an iterable of N.
            The default is None whatever `logit_softcap` is.
        distill_weight: As in `codistillation_loss`.
        temperature: As there.
        teacher_weights: As there.
        class_weight: As there.
        label_smoothing: As there.
        ignore_index: As there.
        z_loss: As there.
        reduction: As there.
        normalizer: As there.
        chunk_tokens: Largest number of tokens whose logits exist at the same time, in B = 1 + N buffers ``[tokens, V]``
            (with a `logit_softcap` 2 + N, if a gradient is wanted and as wide). "auto" gives these the memory that the
            head's gradient takes in float32, ``4 * D / (B * itemsize)`` tokens, but at least 512 tokens on a CPU and
            1024 on a GPU: with fewer, the GEMMs wait for the head and its gradient, which each chunk moves through
            memory. If a GPU has no room for them, "auto" warns and continues with half as many.
        logits_dtype: Dtype of these buffers; None for the dtype of `hidden`. 16 bits save memory and cost precision:
            if logits reach 20, bfloat16 gradients are off by 0.7 % rather than 0.2 %. A wider `hidden` keeps its dtype.
        grad_weight_dtype: Dtype in which the gradients of the chunks by `linear_weight` are summed; None for the dtype
            of `linear_weight`. 16 bits save memory and lose small summands. A wider `linear_weight` keeps its dtype.
        vocab_parallel: Classes of this rank, if the heads are split over several ranks. `linear_weight`,
            `linear_bias`, `teacher_linear_weight` and `teacher_linear_bias` then hold the rows of these classes only,
            and so do their gradients. All other arguments, `class_weight` too, are the same on all these ranks. The
            call is collective, and for "none" its backward is too. The loss, its parts and the gradient by `hidden` are
            the same on all these ranks. The call synchronizes a GPU.
        implementation: As in `codistillation_loss`, for the loss of a chunk; "cuda" does not support `vocab_parallel`.
        check_target: As there.
        return_parts: If true, return ``(loss, LossParts)``.

    Returns:
        As `codistillation_loss`; float64 for float64 `hidden`, else float32.

    Raises:
        TypeError: An argument has the wrong type or dtype, or is a DTensor.
        ValueError: Shapes, vocabularies or devices differ, a number or a label is out of its range, a tensor (of a
            teacher or an option) requires grad or has a tangent but would receive no derivative, or the ranks' classes
            are not the whole vocabulary. The message names the argument. With `vocab_parallel`, an error on one rank is
            an error on all.
        ImportError: The implementation is not installed.
        NotImplementedError: As in `codistillation_loss`.
        RuntimeError: In the backward: it is differentiated (``create_graph=True``), or is the second one of this call
            (except for "none").
    """
    device = getattr(hidden, "device", None)
    with nullcontext() if vocab_parallel is None else vocab_parallel.raise_on_all_ranks(device):
        check_derivatives(hidden=hidden, linear_weight=linear_weight, linear_bias=linear_bias)
        teachers = as_teachers(
            teacher_hidden, teacher_linear_weight, teacher_linear_bias, teacher_logit_scale, teacher_logit_softcap
        )
        check_student(hidden, linear_weight, linear_bias, logit_scale, logit_softcap)
        check_labels(target, "hidden", hidden)
        check_linear_teachers(teachers, hidden, linear_weight)
        classes = len(linear_weight) if vocab_parallel is None else vocab_parallel.classes
        check_class_weight(class_weight, classes, hidden.device)
        check_numbers(distill_weight, temperature, label_smoothing, z_loss)
        weights = as_weights(teacher_weights, len(teachers))
        check_reduction(hidden, reduction, normalizer)
        check_chunks(chunk_tokens, logits_dtype=logits_dtype, grad_weight_dtype=grad_weight_dtype)
        check_implementation("hidden", hidden, implementation)

    states, labels = _as_rows(hidden), target.reshape(-1).contiguous()
    if check_target and target.is_cuda:
        assert_in_range(labels, ignore_index, classes)
    buffer_dtype = _wider(states.dtype, logits_dtype)
    if class_weight is not None:
        class_weight = class_weight.to(compute_dtype(buffer_dtype)).contiguous()
    reduced = Reduction.create(reduction, labels, ignore_index, class_weight, normalizer, states.dtype)
    # As in codistillation_loss: teachers without a weight may hold infinities.
    active = mixture(weights) if distill_weight else {}
    active_teachers = [teachers[j] for j in active]
    summed = reduction != "none"
    trained = [x is not None and x.requires_grad for x in (states, linear_weight, linear_bias)]

    loss, parts, *_ = linear_codistillation(
        states,
        linear_weight,
        linear_bias,
        labels,
        class_weight,
        reduced.scales(distill_weight, z_loss),
        [_as_rows(teacher.hidden) for teacher in active_teachers],
        [teacher.weight for teacher in active_teachers],
        [teacher.scale for teacher in active_teachers],
        [teacher.bias for teacher in active_teachers],
        float(logit_scale),
        None if logit_softcap is None else float(logit_softcap),
        [float(teacher.logit_scale) for teacher in active_teachers],
        [float(teacher.logit_softcap or 0) for teacher in active_teachers],
        list(active.values()),
        float(temperature),
        float(label_smoothing),
        ignore_index,
        implementation,
        buffer_dtype,
        _wider(linear_weight.dtype, grad_weight_dtype),
        None if chunk_tokens == "auto" else chunk_tokens,
        None if vocab_parallel is None else vocab_parallel.number,
        summed,
        [summed and torch.is_grad_enabled() and requires_grad for requires_grad in trained],
        None,
    )
    loss = reduced.loss(loss) if summed else loss.view(target.shape)
    return (loss, reduced.parts(parts, target.shape)) if return_parts else loss


def _as_rows(hidden: Tensor) -> Tensor:
    """Return `hidden` as ``[rows, D]``, in the dtype to which autocast casts the input of a linear layer."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device) and hidden.dtype != torch.float64:
        hidden = hidden.to(torch.get_autocast_dtype(device))
    return hidden.reshape(-1, hidden.shape[-1])


def _wider(dtype: torch.dtype, requested: torch.dtype | None) -> torch.dtype:
    """Return the promotion of both dtypes, or `dtype` if no other is requested."""
    return dtype if requested is None else torch.promote_types(dtype, requested)
