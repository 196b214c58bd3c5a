"""The fused loss of hidden states as a torch operator, with autograd.

If the loss is a sum over rows, the forward computes its gradients too, while a chunk's logits are in memory, and no
logit is computed twice. If the rows' losses stay separate, only the backward knows their upstream gradient: it computes
the chunks a second time.
"""

from dataclasses import fields, replace
from typing import Any

from torch import Tensor
from torch.library import custom_op
from torch.utils._pytree import tree_flatten, tree_unflatten

from hpcdistill.losses import ops
from hpcdistill.losses.linear_chunks import Call, Outputs, new_outputs, run, vocab_parallel_of


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
    return run(Call(*arguments))


@linear_codistillation.register_fake
def _(*arguments: Any) -> Outputs:
    call = Call(*arguments)
    losses, parts, *gradients = new_outputs(call)
    loss = losses.new_empty(()) if call.summed else losses
    return loss, parts, gradients[0], gradients[1], gradients[2]


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
        ctx.vocab_parallel = vocab_parallel_of(call)  # keeps it until the backward
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
