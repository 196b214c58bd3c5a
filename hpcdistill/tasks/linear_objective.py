"""A softmax whose logits never exist together: the loss multiplies by the model's head itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from hpcdistill.errors import UserError
from hpcdistill.losses.linear import linear_codistillation_loss
from hpcdistill.tasks.objective import Softmax


class Hidden(NamedTuple):
    """What a model has found out, and the head that would make logits of it."""

    states: Tensor
    """[..., D]"""
    weight: Tensor
    """[V, D]"""
    bias: Tensor | None
    """[V]"""

    def to(self, dtype: torch.dtype) -> Hidden:
        """As it is: the loss takes teachers of any dtype."""
        return self

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """As of a tensor."""
        self.states.record_stream(stream)


class FusedSoftmax(Softmax):
    """`Softmax` for models that have a method `hidden` and an `nn.Linear` named `head`; see there.

    Args:
        classes: V.
        model: the student.

    Raises:
        UserError: the model has not.
    """

    def __init__(self, classes: int, model: nn.Module) -> None:
        super().__init__(classes)
        if not (callable(getattr(model, "hidden", None)) and isinstance(getattr(model, "head", None), nn.Linear)):
            raise UserError(
                f"codistill.fused_linear needs a model with a method `hidden` and an nn.Linear `head`, which "
                f"{type(model).__name__} has not; add them, or do without --codistill.fused_linear"
            )

    def outputs(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> Hidden:  # type: ignore[override]
        """See `Objective`."""
        hidden, head = cast(Callable[..., Tensor], model.hidden), cast(nn.Linear, model.head)
        return Hidden(hidden(*inputs), head.weight, head.bias)

    def always(self, prior: Tensor, target: Tensor) -> Hidden:  # type: ignore[override]
        """See `Objective`; a bias is all that there is to it."""
        return Hidden(prior.new_zeros(*target.shape, 1), prior.new_zeros(len(prior), 1), prior)

    def loss(  # type: ignore[override]
        self, outputs: Hidden, target: Tensor, teachers: list[Hidden], weight: float, temperature: float
    ) -> Tensor:
        """See `linear_codistillation_loss`."""
        loss: Tensor = linear_codistillation_loss(
            outputs.states,
            outputs.weight,
            target,
            [teacher.states for teacher in teachers],
            [teacher.weight for teacher in teachers],
            bias=outputs.bias,
            teacher_bias=[teacher.bias for teacher in teachers],
            distill_weight=weight,
            temperature=temperature,
        )
        return loss

    def cross_entropy(self, outputs: Hidden, target: Tensor) -> Tensor:  # type: ignore[override]
        """See `Objective`."""
        losses: Tensor = linear_codistillation_loss(
            outputs.states, outputs.weight, target, bias=outputs.bias, reduction="none"
        )
        return losses
