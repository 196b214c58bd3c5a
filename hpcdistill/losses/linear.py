"""The codistillation loss of hidden states: their logits, most of a large vocabulary's memory, never exist together.

Multiplying by the head inside the loss, a chunk of tokens at a time, is what Hsu et al., "Liger Kernel: Efficient
Triton Kernels for LLM Training" (arXiv 2410.10989), section 3.2, do for the cross-entropy.
"""

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from hpcdistill.kernels.rows import compute_dtype
from hpcdistill.losses.checks import (
    as_shares,
    assert_in_range,
    check_class_weight,
    check_derivatives,
    check_implementation,
    check_labels,
    check_numbers,
    check_reduction,
    mixture,
)
from hpcdistill.losses.linear_checks import Weight, as_teachers, check_chunks, check_linear_teachers, check_student
from hpcdistill.losses.linear_ops import linear_codistillation
from hpcdistill.losses.reduction import Reduction
from hpcdistill.losses.vocab_parallel import VocabularyShard


def linear_codistillation_loss(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    teacher_hidden: Tensor | Iterable[Tensor] | None = None,
    teacher_weight: Tensor | Iterable[Weight] | None = None,
    *,
    bias: Tensor | None = None,
    teacher_bias: Tensor | Iterable[Tensor | None] | None = None,
    distill_weight: float = 1.0,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
    class_weight: Tensor | None = None,
    z_loss: float = 0.0,
    ignore_index: int = -100,
    teacher_shares: Iterable[float] | None = None,
    reduction: str = "mean",
    normalizer: float | Tensor | None = None,
    chunk_tokens: int | str = "auto",
    logits_dtype: torch.dtype | None = torch.float32,
    grad_weight_dtype: torch.dtype | None = torch.float32,
    shard: VocabularyShard | None = None,
    implementation: str = "auto",
    check_target: bool = False,
    return_parts: bool = False,
) -> Any:
    """`codistillation_loss` of the logits ``hidden @ weight.T + bias``, without ever holding them all.

    A chunk of tokens at a time, the logits of all models are made in a buffer that is reused, the student's are
    overwritten by their gradient, and that is multiplied into the gradients by `hidden`, `weight` and `bias`, the only
    ones there are. None is computed for what does not require grad, such as a frozen head.

    For "mean" and "sum" this happens in the forward: there can be one backward only for a call, which costs next to
    nothing. For "none" the backward, which alone knows the rows' factors, makes the chunks again; it needs the
    teachers' tensors until then. There is no second derivative; transforms of torch.func (grad, jvp, vmap …) and
    forward-mode differentiation are refused.

    Two names differ from those in `codistillation_loss`, as `weight` is here, as in `torch.nn.functional.linear`, the
    head's: `distill_weight` is what is called `weight` there, and `teacher_shares` is `teacher_weights`, which is too
    near to `teacher_weight`.

    Args:
        hidden: the student's, ``[..., D]``; float64, float32, bfloat16 or float16. Those of rows that are ignored must
            be finite, as for `torch.nn.functional.linear`. Under autocast they are cast as there.
        weight: the student's head, ``[V, D]``; any of these dtypes and any strides, so a tied or sliced one, too. GEMMs
            have the dtype of `hidden`; on a CPU, which cannot sum 16-bit products in float32, that of their result.
        target: labels ``[...]``, int64; see `codistillation_loss`.
        teacher_hidden: N tensors ``[..., D_j]``, or one ``[N, ..., D]``; N may be 0. Each with a dtype of its own.
        teacher_weight: N heads: a tensor ``[V, D_j]``, of any of the dtypes above, or a tuple ``(int8 [V, D_j], float
            [V])`` of numbers and what each row of them is multiplied by.
        bias: the student's, ``[V]``, any floating dtype.
        teacher_bias: N tensors ``[V]``, each of which may be None.
        distill_weight: of the divergence; a plain number, so that it may change with the step.
        temperature: as in `codistillation_loss`.
        label_smoothing: as there.
        class_weight: as there.
        z_loss: as there.
        ignore_index: as there.
        teacher_shares: N shares in the mean, normalised to sum to 1; a teacher whose share is 0 is not looked at.
        reduction: as there.
        normalizer: as there.
        chunk_tokens: the most tokens whose logits exist at once, in buffers ``[1 + N, tokens, V]``. "auto" gives these
            as much memory as the head's gradient takes in float32, which has to be there anyway: ``4 * D / ((1 + N) *
            itemsize)`` tokens. But it takes at least 512 on a CPU and 1024 on a GPU, for with fewer the GEMMs wait for
            the head and its gradient, which every chunk moves through memory. Where a GPU has no room for so many, it
            warns and goes on with half of them.
        logits_dtype: of the buffers; None for the dtype of `hidden`, which saves memory, and costs precision if that
            has 16 bits: where logits reach 20, gradients in bfloat16 are off by 0.7 % rather than 0.2 %. A wider
            `hidden` keeps its own dtype.
        grad_weight_dtype: in which the chunks' gradients by `weight` are summed; None for the dtype of `weight`, which
            saves memory, and loses small summands if that has 16 bits. A wider `weight` keeps its own dtype.
        shard: which of the V classes this rank has, if the heads are split over several ranks: then `weight`, `bias`,
            `teacher_weight` and `teacher_bias` have its rows alone, and so have their gradients. All else, class_weight
            as well, must be the same on all these ranks, which make the call together, and the backward for "none";
            loss, parts and the gradient by `hidden` are the same on all of them. It waits for a GPU.
        implementation: of the loss of a chunk, as there; "cuda" knows no shards.
        check_target: as there.
        return_parts: return ``(loss, LossParts)``.

    Returns:
        As `codistillation_loss`; float64 for float64 `hidden`, else float32.

    Raises:
        TypeError: an argument of the wrong type or dtype, or a DTensor.
        ValueError: shapes, vocabularies or devices that differ, a number or a target out of its range, a tensor (a
            teacher's or an option's) that requires grad or has a tangent and would get no derivative, shards that are
            not the whole vocabulary; the message names them. With a shard, an error on one rank is an error on all.
        ImportError: the implementation that was asked for is not installed.
        NotImplementedError: as of `codistillation_loss`.
        RuntimeError: in the backward, for a second derivative (``create_graph=True``) or, but for "none", a second
            backward.
    """
    with shard.refusing_for_all(getattr(hidden, "device", None)) if shard else nullcontext():
        check_derivatives(hidden=hidden, weight=weight, bias=bias)
        teachers = as_teachers(teacher_hidden, teacher_weight, teacher_bias)
        check_student(hidden, weight, bias)
        check_labels(target, "hidden", hidden)
        check_linear_teachers(teachers, hidden, weight)
        classes = len(weight) if shard is None else shard.classes
        check_class_weight(class_weight, classes, hidden.device)
        check_numbers(distill_weight, temperature, label_smoothing, z_loss, weight_name="distill_weight")
        shares = as_shares(len(teachers), teacher_shares, "teacher_shares")
        check_reduction(hidden, reduction, normalizer)
        check_chunks(chunk_tokens, logits_dtype=logits_dtype, grad_weight_dtype=grad_weight_dtype)
        check_implementation("hidden", hidden, implementation)

    states, labels = _as_rows(hidden), target.reshape(-1).contiguous()
    if check_target and target.is_cuda:
        assert_in_range(labels, ignore_index, classes)
    made_dtype = _wider(states.dtype, logits_dtype)
    if class_weight is not None:
        class_weight = class_weight.to(compute_dtype(made_dtype)).contiguous()
    reduced = Reduction.of(reduction, labels, ignore_index, class_weight, normalizer, states.dtype)
    # As in codistillation_loss: teachers that have no say may hold anything.
    mixed = mixture(shares) if distill_weight else {}
    believed = [teachers[j] for j in mixed]
    summed = reduction != "none"

    loss, parts, *_ = linear_codistillation(
        states,
        weight,
        bias,
        labels,
        class_weight,
        reduced.scales(distill_weight, z_loss),
        [_as_rows(teacher.hidden) for teacher in believed],
        [teacher.weight for teacher in believed],
        [teacher.scale for teacher in believed],
        [teacher.bias for teacher in believed],
        list(mixed.values()),
        float(temperature),
        float(label_smoothing),
        ignore_index,
        implementation,
        made_dtype,
        _wider(weight.dtype, grad_weight_dtype),
        None if chunk_tokens == "auto" else chunk_tokens,
        None if shard is None else shard.number,
        summed,
        [summed and torch.is_grad_enabled() and x is not None and x.requires_grad for x in (states, weight, bias)],
        None,
    )
    loss = reduced.loss(loss) if summed else loss.view(target.shape)
    return (loss, reduced.parts(parts, target.shape)) if return_parts else loss


def _as_rows(hidden: Tensor) -> Tensor:
    """``[rows, D]``, in the dtype that autocast asks of a linear layer."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device) and hidden.dtype != torch.float64:
        hidden = hidden.to(torch.get_autocast_dtype(device))
    return hidden.reshape(-1, hidden.shape[-1])


def _wider(dtype: torch.dtype, asked: torch.dtype | None) -> torch.dtype:
    return dtype if asked is None else torch.promote_types(dtype, asked)
