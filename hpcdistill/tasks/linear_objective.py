"""Training objective of a softmax that is fused with the model's head, so that the logits are never all in memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from hpcdistill.errors import UserError
from hpcdistill.losses.linear import linear_codistillation_loss
from hpcdistill.tasks.objective import TrainingObjective


class Hidden(NamedTuple):
    """Hidden states of a model, and the head that turns them into logits."""

    states: Tensor
    """[..., D]"""
    weight: Tensor
    """[V, D]"""
    bias: Tensor | None
    """[V]"""


class FusedSoftmax(TrainingObjective[Hidden]):
    """Training objective like `Softmax`, for models with a method `hidden` and an `nn.Linear` named `head`.

    Args:
        classes: number of classes, V.
        model: the student.

    Raises:
        UserError: the model has no such method or no such head.
    """

    def __init__(self, classes: int, model: nn.Module) -> None:
        if not (callable(getattr(model, "hidden", None)) and isinstance(getattr(model, "head", None), nn.Linear)):
            raise UserError(
                f"codistill.fused_linear needs a model with a method `hidden` and an nn.Linear `head`, which "
                f"{type(model).__name__} does not have; add them, or omit --codistill.fused_linear"
            )
        self.chance_loss = math.log(classes)
        self.uniform = torch.zeros(classes)

    def outputs(self, model: nn.Module, *inputs: Any, **named: Any) -> Hidden:
        """See `TrainingObjective`."""
        hidden, head = cast(Callable[..., Tensor], model.hidden), cast(nn.Linear, model.head)
        return Hidden(hidden(*inputs, **named), head.weight, head.bias)

    def constant_prediction(self, logits: Tensor, target: Tensor) -> Hidden:
        """See `TrainingObjective`; the states and the weight are zero, and the bias alone predicts."""
        return Hidden(logits.new_zeros(*target.shape, 1), logits.new_zeros(len(logits), 1), logits)

    def loss(
        self, outputs: Hidden, target: Tensor, teachers: list[Hidden], distill_weight: float, temperature: float
    ) -> Tensor:
        """See `linear_codistillation_loss`."""
        return linear_codistillation_loss(
            outputs.states,
            outputs.weight,
            target,
            [teacher.states for teacher in teachers],
            [teacher.weight for teacher in teachers],
            linear_bias=outputs.bias,
            teacher_linear_bias=[teacher.bias for teacher in teachers],
            distill_weight=distill_weight,
            temperature=temperature,
        )

    def cross_entropy(self, outputs: Hidden, target: Tensor) -> Tensor:
        """See `TrainingObjective`."""
        return linear_codistillation_loss(
            outputs.states, outputs.weight, target, linear_bias=outputs.bias, reduction="none"
        )
