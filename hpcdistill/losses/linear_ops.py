"""The fused loss of hidden states as a torch operator: logits exist for a chunk of tokens at a time.

For each chunk, a GEMM computes the logits of each model into a buffer, the kernel of `ops` overwrites the student's
with their gradient (which has a buffer of its own where the logits are capped), and GEMMs add it to the gradients by
hidden states, head and bias. If the loss is a sum over rows, the forward does all of this, and no logit is computed
twice. If the rows' losses stay separate, only the backward knows their upstream gradient: it computes the chunks a
second time.
"""

import warnings
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op
from torch.utils._pytree import tree_flatten, tree_unflatten

from hpcdistill.kernels.rows import Rows, compute_dtype
from hpcdistill.losses import buffers, ops
from hpcdistill.losses.linear_gemms import add_product, factor_dtype, fill_logits, multiply_by_derivative, tiles
from hpcdistill.losses.vocab_parallel import INSTANCES, VocabParallel

FEWEST_TOKENS = {"cpu": 512, "cuda": 1024}
"""Smallest chunks of "auto" by device type. With fewer tokens the GEMMs wait for the head and its gradient, which each
chunk moves through memory."""

Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Call:
    """Arguments of the operator: one call, checked and flattened to rows; V classes, D and D_j columns."""

    hidden: Tensor
    """``[rows, D]``"""
    weight: Tensor
    """``[V, D]``"""
    bias: Tensor | None
    """``[V]``"""
    target: Tensor
    """See `Rows`, as for `class_weight`, `scales`, and `mixture` to `ignore_index`."""
    class_weight: Tensor | None
    scales: Tensor
    teacher_hidden: list[Tensor]
    """N tensors ``[rows, D_j]``"""
    teacher_weight: list[Tensor]
    """N tensors ``[V, D_j]``; int8 ones have a scale."""
    teacher_scale: list[Tensor | None]
    """N scales ``[V]`` of the rows of int8 weights, or None."""
    teacher_bias: list[Tensor | None]
    """N tensors ``[V]``, or None."""
    logit_scale: float
    logit_softcap: float | None
    teacher_logit_scale: list[float]
    teacher_logit_softcap: list[float]
    """N numbers; 0 for none, as an operator has no lists of optional numbers."""
    mixture: list[float]
    temperature: float
    label_smoothing: float
    ignore_index: int
    implementation: str
    logits_dtype: torch.dtype
    grad_weight_dtype: torch.dtype
    chunk_tokens: int | None
    """Largest number of tokens in a chunk; None for "auto" (see `_tokens_per_chunk`)."""
    vocab_parallel: int | None
    """Number of the `VocabParallel` to whose classes the heads belong; None if the heads have all classes."""
    summed: bool
    """True if the loss is the sum of the rows' losses."""
    wanted: list[bool]
    """Flags of `hidden`, `weight` and `bias`: true to compute the gradient of the sum of the rows' losses by it."""
    factors: Tensor | None
    """``[rows]``: factor of each row's loss in that sum; None for ones."""

    @property
    def buffers(self) -> int:
        """Number of buffers ``[tokens, V]``: one for each model, and one if the gradient must not overwrite logits."""
        return 1 + len(self.mixture) + (self.logit_softcap is not None and any(self.wanted))


@custom_op(
    "hpcdistill::linear_codistillation",
    mutates_args=(),
    schema="(Tensor hidden, Tensor weight, Tensor? bias, Tensor target, Tensor? class_weight, Tensor scales, "
    "Tensor[] teacher_hidden, Tensor[] teacher_weight, Tensor?[] teacher_scale, Tensor?[] teacher_bias, "
    "float logit_scale, float? logit_softcap, float[] teacher_logit_scale, float[] teacher_logit_softcap, "
    "float[] mixture, float temperature, float label_smoothing, int ignore_index, str implementation, "
    "ScalarType logits_dtype, ScalarType grad_weight_dtype, int? chunk_tokens, int? vocab_parallel, bool summed, "
    "bool[] wanted, Tensor? factors) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def linear_codistillation(*arguments: Any) -> Outputs:
    """Return the loss ``[]`` or ``[rows]``, parts ``[3, rows]``, and gradients by `hidden`, `weight` and `bias`.

    The gradients are in float32 or wider, except for `grad_weight_dtype`, and empty if they are not wanted. With
    `vocab_parallel` the call is collective, and all results but the gradients by `weight` and `bias` are the same on
    all ranks.
    """
    call = Call(*arguments)
    vocab_parallel = _vocab_parallel(call)
    losses, parts, by_hidden, by_weight, by_bias = _new_outputs(call)
    buffers = _buffers(call)
    for begin in range(0, len(losses), buffers.shape[1]):
        rows = slice(begin, begin + buffers.shape[1])
        dlogits, parts[:, rows] = _run_chunk(call, rows, buffers, losses[rows])
        if dlogits is not None:
            _add_gradients(call, rows, dlogits, by_hidden, by_weight, by_bias)
    if vocab_parallel and len(losses):
        losses = vocab_parallel.losses(parts, call.scales, call.temperature)
        if call.wanted[0]:
            vocab_parallel.all_reduce(by_hidden)
    return losses.sum() if call.summed else losses, parts, by_hidden, by_weight, by_bias


@linear_codistillation.register_fake
def _(*arguments: Any) -> Outputs:
    call = Call(*arguments)
    losses, parts, *gradients = _new_outputs(call)
    loss = losses.new_empty(()) if call.summed else losses
    return loss, parts, gradients[0], gradients[1], gradients[2]


def _new_outputs(call: Call) -> Outputs:
    losses = call.hidden.new_empty(len(call.hidden), dtype=compute_dtype(call.logits_dtype))

    def gradient(by: Tensor | None, wanted: bool, dtype: torch.dtype) -> Tensor:
        shape = by.shape if wanted and by is not None else (0,)
        return losses.new_zeros(shape, dtype=dtype)

    return (
        losses,
        losses.new_empty(3, len(losses)),
        gradient(call.hidden, call.wanted[0], losses.dtype),
        gradient(call.weight, call.wanted[1], call.grad_weight_dtype),
        gradient(call.bias, call.wanted[2], losses.dtype),
    )


def _vocab_parallel(call: Call) -> VocabParallel | None:
    return None if call.vocab_parallel is None else INSTANCES[call.vocab_parallel]


def _run_chunk(call: Call, rows: slice, buffers: Tensor, losses: Tensor) -> tuple[Tensor | None, Tensor]:
    """Fill the `losses` of `rows`; return their gradient by the uncapped logits, if any is wanted, and their parts."""
    logits, *others = buffers[:, : len(losses)]
    teachers = others[: len(call.mixture)]
    fill_logits(logits, call.hidden[rows], call.weight, None, call.bias, call.logit_scale, call.logit_softcap)
    heads = zip(
        call.teacher_hidden,
        call.teacher_weight,
        call.teacher_scale,
        call.teacher_bias,
        call.teacher_logit_scale,
        call.teacher_logit_softcap,
        strict=True,
    )
    for teacher, (hidden, weight, scale, bias, logit_scale, softcap) in zip(teachers, heads, strict=True):
        fill_logits(teacher, hidden[rows], weight, scale, bias, logit_scale, softcap or None)
    gradient = (logits if call.logit_softcap is None else others[-1]) if any(call.wanted) else None
    parts = losses.new_empty(3, len(losses))
    vocab_parallel = _vocab_parallel(call)
    run = vocab_parallel.run if vocab_parallel else ops.run
    run(
        call.implementation,
        Rows(
            logits,
            call.target[rows],
            teachers,
            call.mixture,
            None,
            call.class_weight,
            call.scales,
            call.temperature,
            call.label_smoothing,
            call.ignore_index,
            losses,
            parts,
            gradient,
        ),
    )
    if gradient is not None and call.logit_softcap is not None:
        multiply_by_derivative(gradient, logits, call.logit_softcap)
    if gradient is not None and call.factors is not None:
        gradient = ops.scale(gradient, call.factors[rows])
    return gradient, parts


def _add_gradients(
    call: Call, rows: slice, dlogits: Tensor, by_hidden: Tensor, by_weight: Tensor, by_bias: Tensor
) -> None:
    """Add the contribution of the rows' `dlogits` to the gradients that are wanted."""
    dtype, scale = factor_dtype(call.hidden.dtype, by_hidden), call.logit_scale
    hidden = call.hidden[rows].to(dtype)
    whole = {call.weight.dtype, dlogits.dtype, by_hidden.dtype, by_weight.dtype} == {dtype}
    for tile in tiles(len(call.weight), whole):
        factor = dlogits[:, tile].to(dtype)
        if call.wanted[0]:
            add_product(by_hidden[rows], factor, call.weight[tile].to(dtype), alpha=scale)
        if call.wanted[1]:
            add_product(by_weight[tile], factor.t(), hidden, alpha=scale)
    if call.wanted[2]:
        by_bias.add_(dlogits.sum(0, dtype=by_bias.dtype), alpha=scale)


def _buffers(call: Call) -> Tensor:
    """Return the buffers ``[any, tokens, V]`` of a chunk; `tokens` is the same on all vocab-parallel ranks."""
    vocab_parallel, device = _vocab_parallel(call), call.hidden.device
    if vocab_parallel is None:
        return _allocate_buffers(call)
    with vocab_parallel.raise_on_all_ranks(device):
        buffers = _allocate_buffers(call)
    properties = (*call.hidden.shape, len(call.mixture), int(call.wanted[0]), int(call.target.sum()))
    return buffers[:, : vocab_parallel.agree(device, buffers.shape[1], len(call.weight), properties)]


def _allocate_buffers(call: Call) -> Tensor:
    """Return buffers ``[any, tokens, V]``; for "auto", half as many tokens if there is no memory for all."""
    tokens = _tokens_per_chunk(call)
    try:
        return _new_buffers(call, tokens)
    except torch.OutOfMemoryError:
        if call.chunk_tokens is not None or tokens == 1:
            raise
    half = -(-tokens // 2)
    warnings.warn(
        f"linear_codistillation_loss: no memory for the logits of {tokens} tokens at once; continues with {half}"
        f" (pass chunk_tokens={half} to start with these)",
        stacklevel=1,
    )
    return _new_buffers(call, half)


def _tokens_per_chunk(call: Call) -> int:
    """Return the number of tokens whose logits are computed at a time; "auto" is explained in the loss's docstring."""
    tokens = call.chunk_tokens
    if tokens is None:
        nbytes = call.buffers * call.logits_dtype.itemsize
        tokens = max(4 * call.hidden.shape[1] // nbytes, FEWEST_TOKENS[call.hidden.device.type])
    rows = max(len(call.hidden), 1)
    chunks = -(-rows // tokens)
    return -(-rows // chunks)  # chunks of equal size


def _new_buffers(call: Call, tokens: int) -> Tensor:
    shape = (call.buffers, tokens, len(call.weight))
    if call.hidden.device.type == "cpu":
        return buffers.empty(shape, call.logits_dtype)
    return call.hidden.new_empty(shape, dtype=call.logits_dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    call = Call(*inputs)
    _, parts, *gradients = output
    ctx.summed = call.summed
    ctx.dtypes = [None if by is None else by.dtype for by in (call.hidden, call.weight, call.bias)]
    ctx.no_gradients = ops.no_gradients(inputs[3:])
    ctx.mark_non_differentiable(parts, *gradients)
    ctx.set_materialize_grads(False)
    if call.summed:
        ctx.save_for_backward(*gradients)
        ctx.is_consumed = False
    else:
        ctx.vocab_parallel = _vocab_parallel(call)  # keeps it until the backward
        _save_inputs(ctx, inputs)


def _backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | list[None] | None, ...]:
    make = _scaled_gradients if ctx.summed else _gradients_of_rows
    gradients = make(ctx, grad_outputs[0])
    wanted = [
        gradient.to(dtype) if needed else None
        for gradient, dtype, needed in zip(gradients, ctx.dtypes, ctx.needs_input_grad, strict=False)
    ]
    return *wanted, *ctx.no_gradients


linear_codistillation.register_autograd(_backward, setup_context=_setup_context)


def _scaled_gradients(ctx: Any, factor: Tensor) -> list[Tensor]:
    """Return the gradients of the forward, times the upstream gradient ``[]`` of the sum."""
    return [
        ops.scale(gradient, factor.expand(len(gradient))) if gradient.dim() == 2 else gradient * factor
        for gradient in ops.take_gradients(ctx)
    ]


def _gradients_of_rows(ctx: Any, factors: Tensor) -> list[Tensor]:
    """Compute the gradients of the rows' losses, times the upstream gradient ``[rows]``."""
    ops.refuse_second_derivative()
    call = Call(*_saved_inputs(ctx))
    call = replace(call, summed=True, wanted=list(ctx.needs_input_grad[:3]), factors=factors.contiguous())
    _, _, *gradients = linear_codistillation(*(getattr(call, field.name) for field in fields(Call)))
    return list(gradients)


def _save_inputs(ctx: Any, inputs: tuple[Any, ...]) -> None:
    leaves, ctx.structure = tree_flatten(inputs)
    ctx.others = [None if _can_be_saved(leaf) else leaf for leaf in leaves]
    ctx.save_for_backward(*(leaf if _can_be_saved(leaf) else None for leaf in leaves))


def _can_be_saved(leaf: Any) -> bool:
    """Return whether autograd can save `leaf`; it refuses tensors of inference mode, which have no version counter."""
    return isinstance(leaf, Tensor) and not leaf.is_inference()


def _saved_inputs(ctx: Any) -> tuple[Any, ...]:
    leaves = [other if leaf is None else leaf for leaf, other in zip(ctx.saved_tensors, ctx.others, strict=True)]
    inputs: tuple[Any, ...] = tree_unflatten(leaves, ctx.structure)
    return inputs
