"""Computation of the linear loss, a chunk of tokens at a time.

For each chunk, a GEMM computes the logits of each model into a buffer, the kernel of `ops` computes their gradient, and
GEMMs multiply it into the gradients by hidden states and head. The gradient overwrites the student's logits, except
where these are capped, and on a GPU where they are wider than the factors of GEMMs: there it has a buffer of its own,
in the dtype of the factors, so that no pass over it is needed to convert it.
"""

import warnings
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

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
    def gradient_dtype(self) -> torch.dtype:
        """Dtype of the gradient by the student's logits: theirs, or the narrower one in which GEMMs multiply it."""
        if self.implementation == "cuda":  # which has no such outputs: `_add_gradients` converts the gradient
            return self.logits_dtype
        factor = factor_dtype(self.hidden.dtype, compute_dtype(self.logits_dtype), self.hidden.device)
        return min(self.logits_dtype, factor, key=lambda dtype: dtype.itemsize)

    @property
    def buffers(self) -> int:
        """Number of buffers ``[tokens, V]`` of `logits_dtype`: one for each model, and one if the gradient needs it."""
        has_gradient = any(self.wanted) and self.gradient_dtype == self.logits_dtype
        return 1 + len(self.mixture) + (self.logit_softcap is not None and has_gradient)


class Buffers(NamedTuple):
    """Memory for the logits of a chunk, which all chunks use in turn."""

    logits: Tensor
    """``[1 + N, tokens, V]``: those of the student and of the teachers."""
    gradient: Tensor | None
    """``[tokens, V]`` for the gradient by the student's logits, possibly the memory of these; None if not wanted."""


def run(call: Call) -> Outputs:
    """Return the outputs of the operator `linear_codistillation`."""
    vocab_parallel = vocab_parallel_of(call)
    losses, parts, by_hidden, by_weight, by_bias = new_outputs(call)
    by_bias.zero_()
    call, buffers, tokens = _prepare(call)
    for begin in range(0, len(losses), tokens):
        rows = slice(begin, begin + tokens)
        dlogits, parts[:, rows] = _run_chunk(call, rows, buffers, losses[rows])
        if dlogits is not None:
            _add_gradients(call, rows, dlogits, by_hidden, by_weight, by_bias)
    if not len(losses):
        by_weight.zero_()
    elif vocab_parallel:
        losses = vocab_parallel.losses(parts, call.scales, call.temperature)
        if call.wanted[0]:
            vocab_parallel.all_reduce(by_hidden)
    return losses.sum() if call.summed else losses, parts, by_hidden, by_weight, by_bias


def new_outputs(call: Call) -> Outputs:
    """Return uninitialized memory for the outputs, with losses ``[rows]``."""
    losses = call.hidden.new_empty(len(call.hidden), dtype=compute_dtype(call.logits_dtype))

    def gradient(by: Tensor | None, wanted: bool, dtype: torch.dtype) -> Tensor:
        shape = by.shape if wanted and by is not None else (0,)
        return losses.new_empty(shape, dtype=dtype)

    return (
        losses,
        losses.new_empty(3, len(losses)),
        gradient(call.hidden, call.wanted[0], losses.dtype),
        gradient(call.weight, call.wanted[1], call.grad_weight_dtype),
        gradient(call.bias, call.wanted[2], losses.dtype),
    )


def vocab_parallel_of(call: Call) -> VocabParallel | None:
    """Return the `VocabParallel` to whose classes the heads belong, if there is one."""
    return None if call.vocab_parallel is None else INSTANCES[call.vocab_parallel]


def _run_chunk(call: Call, rows: slice, buffers: Buffers, losses: Tensor) -> tuple[Tensor | None, Tensor]:
    """Fill the `losses` of `rows`; return their gradient by the uncapped logits, if any is wanted, and their parts."""
    logits, *teachers = buffers.logits[:, : len(losses)]
    gradient = None if buffers.gradient is None else buffers.gradient[: len(losses)]
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
    parts = losses.new_empty(3, len(losses))
    vocab_parallel = vocab_parallel_of(call)
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
    """Add the contribution of the rows' `dlogits` to the gradients that are wanted.

    `by_hidden` has rows of its own for each chunk, and the first chunk sets `by_weight`: neither is read before.
    """
    scale, device = call.logit_scale, dlogits.device
    dtype = factor_dtype(call.hidden.dtype, by_hidden.dtype, device)
    hidden = call.hidden[rows].to(dtype)
    whole = {call.weight.dtype, factor_dtype(dtype, by_weight.dtype, device)} == {dtype}
    whole &= dlogits.is_cuda or dlogits.dtype == dtype
    for number, tile in enumerate(tiles(len(call.weight), whole)):
        factor = dlogits[:, tile].to(dtype)
        if call.wanted[0]:
            add_product(by_hidden[rows], factor, call.weight[tile].to(dtype), beta=int(number > 0), alpha=scale)
        if call.wanted[1]:
            add_product(by_weight[tile], factor.t(), hidden, beta=int(rows.start > 0), alpha=scale)
    if call.wanted[2]:
        by_bias.add_(dlogits.sum(0, dtype=by_bias.dtype), alpha=scale)


def _prepare(call: Call) -> tuple[Call, Buffers, int]:
    """Return the call with `_narrow_heads`, its buffers, and the tokens in a chunk, equal on vocab-parallel ranks."""
    vocab_parallel, device = vocab_parallel_of(call), call.hidden.device
    with nullcontext() if vocab_parallel is None else vocab_parallel.raise_on_all_ranks(device):
        call = _narrow_heads(call)
        buffers = _allocate_buffers(call)
    tokens = buffers.logits.shape[1]
    if vocab_parallel:
        properties = (*call.hidden.shape, len(call.mixture), int(call.wanted[0]), int(call.target.sum()))
        tokens = vocab_parallel.agree(device, tokens, len(call.weight), properties)
    return call, buffers, tokens


def _narrow_heads(call: Call) -> Call:
    """Return `call` with copies of those heads that GEMMs on a GPU multiply in a narrower dtype.

    Converting them for each chunk would take a third of the GEMMs' time. On a CPU the GEMMs take far longer, and the
    heads are converted a tile at a time.
    """
    if not call.hidden.is_cuda:
        return call

    def narrow(hidden: Tensor, weight: Tensor) -> Tensor:
        dtype = factor_dtype(hidden.dtype, call.logits_dtype, hidden.device)
        return weight.to(dtype) if weight.dtype.itemsize > dtype.itemsize else weight

    teachers = [narrow(*teacher) for teacher in zip(call.teacher_hidden, call.teacher_weight, strict=True)]
    return replace(call, weight=narrow(call.hidden, call.weight), teacher_weight=teachers)


def _allocate_buffers(call: Call) -> Buffers:
    """Return the buffers of a chunk; for "auto", of half as many tokens if there is no memory for all."""
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


def _new_buffers(call: Call, tokens: int) -> Buffers:
    shape = (call.buffers, tokens, len(call.weight))
    if call.hidden.device.type == "cpu":
        memory = buffers.empty(shape, call.logits_dtype)
    else:
        memory = call.hidden.new_empty(shape, dtype=call.logits_dtype)
    if not any(call.wanted):
        gradient = None
    elif call.gradient_dtype != call.logits_dtype:
        gradient = call.hidden.new_empty(shape[1:], dtype=call.gradient_dtype)
    else:
        gradient = memory[0 if call.logit_softcap is None else -1]
    return Buffers(memory[: 1 + len(call.mixture)], gradient)
