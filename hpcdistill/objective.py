"""What a model's output is a prediction of, and how it is learned: by the losses of this package."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from hpcdistill.binary_loss import binary_codistillation_loss
from hpcdistill.loss import codistillation_loss


class Objective(Protocol):
    """How outputs of a model are judged."""

    guessing: float
    """The cross-entropy, in nats, of a prediction that knows nothing."""
    uniform: Tensor
    """That prediction: the outputs for one target."""

    def loss(
        self, outputs: Tensor, target: Tensor, teachers: list[Tensor], weight: float, temperature: float
    ) -> Tensor:
        """The mean loss of a batch, with the distillation term; teachers' outputs are shaped as `outputs`."""

    def cross_entropy(self, outputs: Tensor, target: Tensor) -> Tensor:
        """In nats for each target, shaped as `target`; float32."""


class Softmax:
    """One of `classes`: outputs are logits [..., classes], targets int64 [...]."""

    def __init__(self, classes: int) -> None:
        self.guessing = math.log(classes)
        self.uniform = torch.zeros(classes)

    def loss(
        self, outputs: Tensor, target: Tensor, teachers: list[Tensor], weight: float, temperature: float
    ) -> Tensor:
        """See `codistillation_loss`."""
        loss: Tensor = codistillation_loss(outputs, target, teachers, weight=weight, temperature=temperature)
        return loss

    def cross_entropy(self, outputs: Tensor, target: Tensor) -> Tensor:
        """See `Objective`."""
        losses = functional.cross_entropy(outputs.flatten(0, -2).float(), target.flatten(), reduction="none")
        return losses.view_as(target)


class Binary:
    """Yes or no: outputs are one logit each [...], targets float [...]."""

    guessing = math.log(2)
    uniform = torch.zeros(())

    def loss(
        self, outputs: Tensor, target: Tensor, teachers: list[Tensor], weight: float, temperature: float
    ) -> Tensor:
        """See `binary_codistillation_loss`."""
        return binary_codistillation_loss(outputs, target, teachers, weight=weight, temperature=temperature)

    def cross_entropy(self, outputs: Tensor, target: Tensor) -> Tensor:
        """See `Objective`."""
        return functional.binary_cross_entropy_with_logits(outputs.float(), target, reduction="none")
