"""The fused loss as torch operators, which autograd, torch.compile and CUDA graphs support.

The forward computes losses and gradient together, while a row is in the cache. The backward multiplies the gradient by
the upstream gradient, in place; this costs nothing if that is 1, as it is after the usual `loss.backward()`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from hpcdistill.kernels import dispatch
from hpcdistill.kernels.rows import Rows, compute_dtype
from hpcdistill.losses import buffers

# The fields of Rows before its outputs, and the name of the implementation that fills these.
_SCHEMA = (
    "Tensor target, Tensor[] teachers, float[] mixture, Tensor? teacher_lse, Tensor? class_weight, Tensor scales, "
    "float temperature, float label_smoothing, int ignore_index, str implementation"
)


@custom_op(
    "hpcdistill::codistillation",
    mutates_args=(),
    schema=f"(Tensor logits, {_SCHEMA}, bool with_gradient) -> (Tensor, Tensor, Tensor)",
)
def codistillation(logits: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return losses ``[rows]``, parts ``[3, rows]`` and the gradient ``[rows, V]`` of the sum of the losses.

    With ``with_gradient=False`` the gradient has no rows, and there is no backward.
    """
    *fields, implementation, with_gradient = arguments
    losses, parts = _new_losses(logits)
    rows = logits.shape[0] if with_gradient else 0
    if logits.device.type == "cpu":
        gradient = buffers.empty((rows, logits.shape[1]), logits.dtype)
    else:
        gradient = _new_gradient(logits, rows)
    run(implementation, Rows(*(logits, *fields, losses, parts, gradient if with_gradient else None)))
    return losses, parts, gradient


@codistillation.register_fake
def _(logits: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    rows = logits.shape[0] if arguments[-1] else 0
    if logits.device.type == "cpu":
        return *_new_losses(logits), logits.new_empty(rows, logits.shape[1])
    return *_new_losses(logits), _new_gradient(logits, rows)


def _new_gradient(logits: Tensor, rows: int) -> Tensor:
    """Return memory on a GPU for the gradient of the first `rows`.

    Rows of a slice of padded logits keep their strides: so they begin like those of the logits, and kernels access both
    in vectors. More than an eighth of padding is not worth its memory.
    """
    classes, stride = logits.shape[1], logits.stride(0)
    if classes < stride <= classes + classes // 8:
        return logits.new_empty_strided((rows, classes), (stride, 1))
    return logits.new_empty(rows, classes)


def _new_losses(logits: Tensor) -> tuple[Tensor, Tensor]:
    losses = logits.new_empty(logits.shape[0], dtype=compute_dtype(logits.dtype))
    return losses, losses.new_empty(3, logits.shape[0])


@custom_op(
    "hpcdistill::codistillation_",
    mutates_args=("logits",),
    schema=f"(Tensor(a!) logits, {_SCHEMA}) -> (Tensor, Tensor)",
)
def codistillation_(logits: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    """Return losses and parts as `codistillation` does, and overwrite `logits` with the gradient."""
    *fields, implementation = arguments
    losses, parts = _new_losses(logits)
    run(implementation, Rows(*(logits, *fields, losses, parts, logits)))
    return losses, parts


@codistillation_.register_fake
def _(logits: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _new_losses(logits)


class InPlace(torch.autograd.Function):
    """Autograd function of `codistillation_`; torch registers none for operators that write to their arguments."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        """Run `codistillation_`, which increments the version counter of `logits`, so that autograd sees the change."""
        losses, parts = codistillation_(logits, *arguments)
        _save(ctx, gradient=logits, not_differentiable=(parts,))
        return losses, parts

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient by `logits`, and None for the other arguments."""
        return _gradient(ctx, grad_outputs[0]), *[None] * (len(ctx.needs_input_grad) - 1)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, parts, gradient = output
    ctx.no_gradients = no_gradients(inputs[1:])
    _save(ctx, gradient, not_differentiable=(parts, gradient))


def no_gradients(inputs: tuple[Any, ...]) -> list[list[None] | None]:
    """Return what a backward returns for `inputs` without a gradient, in the structure that torch expects."""
    # Torch expects a list for a list of tensors, and takes every empty list for one.
    return [[None] * len(x) if _is_list_of_tensors(x) else None for x in inputs]


def _is_list_of_tensors(x: object) -> bool:
    return isinstance(x, list) and all(isinstance(element, Tensor) for element in x)


def _backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | list[None] | None, ...]:
    return _gradient(ctx, grad_outputs[0]), *ctx.no_gradients


codistillation.register_autograd(_backward, setup_context=_setup_context)


def _save(ctx: Any, gradient: Tensor, not_differentiable: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(gradient)
    ctx.mark_non_differentiable(*not_differentiable)
    ctx.set_materialize_grads(False)
    ctx.is_consumed = False


def _gradient(ctx: Any, factors: Tensor) -> Tensor:
    (gradient,) = take_gradients(ctx)
    return scale(gradient, factors)


def take_gradients(ctx: Any) -> tuple[Tensor, ...]:
    """Return the gradients that the forward has saved; only once, because the backward overwrites them."""
    refuse_second_derivative()
    if ctx.is_consumed:
        raise RuntimeError(
            "this is the second backward through one call of a codistillation loss, and the first has consumed its"
            " gradient; add up the losses and call backward once, or compute the loss again"
        )
    ctx.is_consumed = True
    gradients: tuple[Tensor, ...] = ctx.saved_tensors
    return gradients


def refuse_second_derivative() -> None:
    """Raise an error if autograd records the backward: the gradient would be a constant in a gradient penalty."""
    if torch.is_grad_enabled():
        raise RuntimeError("the codistillation losses have no second derivative; leave create_graph=True out")


def scale(gradient: Tensor, factors: Tensor) -> Tensor:
    """Return `gradient` ``[rows, any]`` times `factors` ``[rows]``, in place except while a graph is traced."""
    if type(gradient) is not Tensor:  # a tensor subclass of the tracer, which has no memory
        return (gradient * factors.unsqueeze(-1)).to(gradient.dtype)
    if gradient.is_cuda:
        dispatch.scale_rows_(gradient, factors)
    elif not bool((factors == 1).all()):
        gradient.mul_(factors.unsqueeze(-1))
    return gradient


def run(implementation: str, rows: Rows) -> None:
    """Fill the outputs of `rows`.

    Raises:
        ValueError: A label or a class weight on a CPU is out of its range.
    """
    if rows.logits.device.type == "cpu":
        _check_values(rows)
    if rows.logits.shape[0]:
        dispatch.run(implementation, rows)


def _check_values(rows: Rows) -> None:
    """Check the labels and the class weights of `rows`, which are on a CPU."""
    wrong = ((rows.target < 0) | (rows.target >= rows.classes)) & (rows.target != rows.ignore_index)
    if bool(wrong.any()):
        raise ValueError(
            f"target holds {rows.target[wrong][0].item()}; labels lie in [0, {rows.classes}),"
            f" or equal ignore_index ({rows.ignore_index}) to be skipped"
        )
    if rows.class_weight is not None and bool((rows.class_weight < 0).any()):
        raise ValueError(f"class_weight holds {rows.class_weight.min().item()}; weights are >= 0")
