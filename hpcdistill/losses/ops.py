"""The fused loss as operators of torch: what autograd, torch.compile and CUDA graphs see of the kernels.

Losses and gradient are made in one go, in the forward, while a row is at hand. The backward multiplies the gradient
by what arrives from above, in place: that costs nothing where it is 1, as it is below the usual `loss.backward()`.
"""

import warnings
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from hpcdistill.kernels.rows import Rows, compute_dtype
from hpcdistill.losses import buffers

IMPLEMENTATIONS = {"cpu": ("cpu", "torch"), "cuda": ("triton", "torch", "cuda")}
"""By device, best first; each has its module in `hpcdistill.kernels`. "cuda" comes last, to be used by name only, until
a measurement says where it wins."""

# The fields of Rows up to its outputs, and who is to fill these.
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
    """Losses ``[rows]``, parts ``[3, rows]`` and, differentiating the former, a gradient like `logits`.

    With ``with_gradient=False`` the latter has no rows, and there is no backward.
    """
    *fields, implementation, with_gradient = arguments
    losses, parts = _new_losses(logits)
    rows = logits.shape[0] if with_gradient else 0
    if logits.device.type == "cpu":
        gradient = buffers.empty((rows, logits.shape[1]), logits.dtype)
    else:
        gradient = logits.new_empty(rows, logits.shape[1])
    run(implementation, Rows(*(logits, *fields, losses, parts, gradient if with_gradient else None)))
    return losses, parts, gradient


@codistillation.register_fake
def _(logits: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    rows, classes = logits.shape
    return *_new_losses(logits), logits.new_empty(rows if arguments[-1] else 0, classes)


def _new_losses(logits: Tensor) -> tuple[Tensor, Tensor]:
    losses = logits.new_empty(logits.shape[0], dtype=compute_dtype(logits.dtype))
    return losses, losses.new_empty(3, logits.shape[0])


@custom_op(
    "hpcdistill::codistillation_",
    mutates_args=("logits",),
    schema=f"(Tensor(a!) logits, {_SCHEMA}) -> (Tensor, Tensor)",
)
def codistillation_(logits: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    """Losses and parts as of `codistillation`; the gradient takes the place of `logits`."""
    *fields, implementation = arguments
    losses, parts = _new_losses(logits)
    run(implementation, Rows(*(logits, *fields, losses, parts, logits)))
    return losses, parts


@codistillation_.register_fake
def _(logits: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _new_losses(logits)


class InPlace(torch.autograd.Function):
    """`codistillation_` with its backward; torch derives none for operators that write to their arguments."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        """See `codistillation_`. The logits' version counter tells autograd that they have changed."""
        losses, parts = codistillation_(logits, *arguments)
        _save(ctx, gradient=logits, not_differentiable=(parts,))
        return losses, parts

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient by `logits`."""
        return _gradient(ctx, grad_outputs[0]), *[None] * (len(ctx.needs_input_grad) - 1)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, parts, gradient = output
    ctx.no_gradients = no_gradients(inputs[1:])
    _save(ctx, gradient, not_differentiable=(parts, gradient))


def no_gradients(inputs: tuple[Any, ...]) -> list[list[None] | None]:
    """What a backward returns for `inputs` that get none, in the structure that torch expects."""
    # A list for what it takes for a list of tensors, which every empty list is.
    return [[None] * len(x) if _is_list_of_tensors(x) else None for x in inputs]


def _is_list_of_tensors(x: Any) -> bool:
    return isinstance(x, list) and all(isinstance(element, Tensor) for element in x)


def _backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:
    return _gradient(ctx, grad_outputs[0]), *ctx.no_gradients


codistillation.register_autograd(_backward, setup_context=_setup_context)


def _save(ctx: Any, gradient: Tensor, not_differentiable: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(gradient)
    ctx.mark_non_differentiable(*not_differentiable)
    ctx.set_materialize_grads(False)
    ctx.is_spent = False


def _gradient(ctx: Any, factors: Tensor) -> Tensor:
    (gradient,) = spent(ctx)
    return scaled(gradient, factors)


def spent(ctx: Any) -> tuple[Tensor, ...]:
    """The gradients that a forward has made and saved, which its backward may have once."""
    refuse_second_derivative()
    if ctx.is_spent:
        raise RuntimeError(
            "codistillation_loss: this is the second backward through one call, whose gradient the first has taken; "
            "add up the losses and call backward once, or compute the loss again"
        )
    ctx.is_spent = True
    gradients: tuple[Tensor, ...] = ctx.saved_tensors
    return gradients


def refuse_second_derivative() -> None:
    """Raise if a backward is to be differentiated; a gradient penalty would take the gradient for a constant."""
    if torch.is_grad_enabled():
        raise RuntimeError("codistillation_loss has no second derivative; leave create_graph=True out")


def scaled(gradient: Tensor, factors: Tensor) -> Tensor:
    """`gradient` ``[rows, any]`` times `factors` ``[rows]``, in place but where a compiler plans memory."""
    if type(gradient) is not Tensor:  # one that only stands for a tensor, while a graph is traced
        return (gradient * factors.unsqueeze(-1)).to(gradient.dtype)
    if gradient.is_cuda and not _what_is_missing("triton"):
        _module("triton").scale_rows_(gradient, factors)
    elif gradient.is_cuda or not bool((factors == 1).all()):  # a GPU is not waited for
        gradient.mul_(factors.unsqueeze(-1))
    return gradient


def run(implementation: str, rows: Rows) -> None:
    """Fill the outputs of `rows`.

    Raises:
        ValueError: a label, on a CPU, or a class weight is out of its range.
    """
    device = rows.logits.device.type
    if device == "cpu":
        _check_values(rows)
    if rows.logits.shape[0]:
        _module(_best(device) if implementation == "auto" else implementation).run(rows)


@cache
def _best(device: str) -> str:
    """The first implementation that is installed; says so, once, where that is not the fastest."""
    fastest = IMPLEMENTATIONS[device][0]
    best = next(name for name in IMPLEMENTATIONS[device] if not _what_is_missing(name))
    if best != fastest:
        warnings.warn(
            f"codistillation_loss uses {best!r} here, which is slow: {_what_is_missing(fastest)}", stacklevel=1
        )
    return best


@cache
def _what_is_missing(implementation: str) -> str:
    try:
        module = _module(implementation)
        if hasattr(module, "library"):
            module.library()
    except ImportError as error:
        return str(error)
    return ""


def _module(implementation: str) -> Any:
    return import_module(f"hpcdistill.kernels.{implementation}_codistillation")


def _check_values(rows: Rows) -> None:
    wrong = ((rows.target < 0) | (rows.target >= rows.classes)) & (rows.target != rows.ignore_index)
    if bool(wrong.any()):
        raise ValueError(
            f"target holds {rows.target[wrong][0].item()}; labels lie in [0, {rows.classes}),"
            f" or equal ignore_index ({rows.ignore_index}) to be skipped"
        )
    if rows.class_weight is not None and bool((rows.class_weight < 0).any()):
        raise ValueError(f"class_weight holds {rows.class_weight.min().item()}; weights are >= 0")
