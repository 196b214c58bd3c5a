"""Objectives: how a model's outputs are trained and evaluated."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpcdistill.data.batches import IGNORED
from hpcdistill.losses.binary import binary_codistillation_loss
from hpcdistill.losses.codistillation import codistillation_loss
from hpcdistill.models.outputs import model_outputs

Outputs = TypeVar("Outputs")


class TrainingObjective(ABC, Generic[Outputs]):
    """Losses of a model's outputs, whose type is the objective's own."""

    chance_loss: float
    """Cross-entropy, in nats, of a model that gives every class the same probability."""
    uniform: Tensor
    """Logits of that model for one target, float32."""

    @abstractmethod
    def outputs(self, model: nn.Module, *inputs: Any, **named: Any) -> Outputs:
        """Run the forward pass of `model` and return its outputs.

        Args:
            model: the model.
            inputs: the inputs of a batch, in the order of the model's parameters.
            named: the inputs of a batch that are passed by name.
        """

    @abstractmethod
    def logits(self, outputs: Outputs, dimensions: int, chosen: slice) -> Tensor:
        """Return the logits of some targets of a batch.

        Args:
            outputs: of a model.
            dimensions: number of dimensions of the batch's target.
            chosen: the targets, in the order of the flattened target.
        """

    @abstractmethod
    def constant_prediction(self, logits: Tensor, target: Tensor) -> Outputs:
        """Return outputs that are `logits` for each target of a batch.

        Args:
            logits: for one target, shaped as `uniform`.
            target: the targets of the batch.
        """

    @abstractmethod
    def loss(
        self, outputs: Outputs, target: Tensor, teachers: list[Outputs], distill_weight: float, temperature: float
    ) -> Tensor:
        """Return the mean loss of a batch with the distillation term, a scalar.

        Args:
            outputs: the student's.
            target: labels of the batch.
            teachers: each teacher's outputs, of the student's shape.
            distill_weight: weight of the distillation term, >= 0.
            temperature: temperature of the distillation term, > 0.
        """

    @abstractmethod
    def cross_entropy(self, outputs: Outputs, target: Tensor) -> Tensor:
        """Return the cross-entropy of each target in nats, shaped as `target`."""

    def excess_loss(self, outputs: Outputs, target: Tensor) -> Tensor:
        """Return the mean cross-entropy of a batch minus `chance_loss`, in nats, a scalar; ignored targets left out."""
        counted = (target != IGNORED).sum().clamp(min=1)
        return self.cross_entropy(outputs, target).sum() / counted - self.chance_loss


class EvaluationObjective(ABC):
    """Comparisons of predictions given as logits."""

    @abstractmethod
    def cross_entropy(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the cross-entropy of each target in nats, float32, shaped as `target`."""

    @abstractmethod
    def ensemble(self, outputs: Sequence[Tensor]) -> Tensor:
        """Return the logits of the mean of the predicted probabilities, float32, shaped as each of `outputs`.

        The mean is computed in the logarithmic domain: probabilities near 1 are not rounded to 1.
        """

    @abstractmethod
    def distance(self, one: Tensor, other: Tensor) -> Tensor:
        """Return the total variation distance of two predictions for each target, float32, in [0, 1].

        It is half the sum of the absolute differences of the classes' probabilities.
        """

    @abstractmethod
    def predict_class(self, outputs: Tensor) -> Tensor:
        """Return the most probable class, with the shape and dtype of a target."""


class Objective(TrainingObjective[Tensor], EvaluationObjective):
    """Objective of a task: the outputs are the logits that a model returns, alone or as an attribute `logits`."""

    def outputs(self, model: nn.Module, *inputs: Any, **named: Any) -> Tensor:
        """See `TrainingObjective`."""
        logits: Tensor = model_outputs(model, *inputs, **named)
        return logits

    def logits(self, outputs: Tensor, dimensions: int, chosen: slice) -> Tensor:
        """See `TrainingObjective`."""
        return outputs.flatten(0, dimensions - 1)[chosen]

    def constant_prediction(self, logits: Tensor, target: Tensor) -> Tensor:
        """See `TrainingObjective`."""
        return logits.expand(*target.shape, *logits.shape)


class Softmax(Objective):
    """Objective of choosing one of `classes`: logits [..., classes], targets int64 [...]."""

    def __init__(self, classes: int) -> None:
        self.chance_loss = math.log(classes)
        self.uniform = torch.zeros(classes)

    def loss(
        self, outputs: Tensor, target: Tensor, teachers: list[Tensor], distill_weight: float, temperature: float
    ) -> Tensor:
        """See `codistillation_loss`; teachers' logits may have another dtype than the student's."""
        return codistillation_loss(
            outputs, target, _cast(teachers, outputs), distill_weight=distill_weight, temperature=temperature
        )

    def cross_entropy(self, outputs: Tensor, target: Tensor) -> Tensor:
        """See `EvaluationObjective`."""
        losses = functional.cross_entropy(outputs.flatten(0, -2).float(), target.flatten(), reduction="none")
        return losses.view_as(target)

    def ensemble(self, outputs: Sequence[Tensor]) -> Tensor:
        """See `EvaluationObjective`."""
        return torch.stack([one.float().log_softmax(-1) for one in outputs]).logsumexp(0) - math.log(len(outputs))

    def distance(self, one: Tensor, other: Tensor) -> Tensor:
        """See `EvaluationObjective`."""
        return (one.float().softmax(-1) - other.float().softmax(-1)).abs().sum(-1) / 2

    def predict_class(self, outputs: Tensor) -> Tensor:
        """See `EvaluationObjective`."""
        return outputs.argmax(-1)


class Binary(Objective):
    """Objective of a binary label: one logit for each target [...], targets float [...], 0 or 1."""

    chance_loss = math.log(2)
    uniform = torch.zeros(())

    def loss(
        self, outputs: Tensor, target: Tensor, teachers: list[Tensor], distill_weight: float, temperature: float
    ) -> Tensor:
        """See `binary_codistillation_loss`; teachers' logits may have another dtype than the student's."""
        return binary_codistillation_loss(
            outputs, target, _cast(teachers, outputs), distill_weight=distill_weight, temperature=temperature
        )

    def cross_entropy(self, outputs: Tensor, target: Tensor) -> Tensor:
        """See `EvaluationObjective`."""
        return functional.binary_cross_entropy_with_logits(outputs.float(), target, reduction="none")

    def ensemble(self, outputs: Sequence[Tensor]) -> Tensor:
        """See `EvaluationObjective`."""
        logits = torch.stack([one.double() for one in outputs])  # float32 near 0 would lose the order of the logits
        return (functional.logsigmoid(logits).logsumexp(0) - functional.logsigmoid(-logits).logsumexp(0)).float()

    def distance(self, one: Tensor, other: Tensor) -> Tensor:
        """See `EvaluationObjective`; the probabilities of both classes differ by the same amount."""
        return (one.float().sigmoid() - other.float().sigmoid()).abs()

    def predict_class(self, outputs: Tensor) -> Tensor:
        """See `EvaluationObjective`."""
        return (outputs > 0).float()


def _cast(teachers: Sequence[Tensor], student: Tensor) -> list[Tensor]:
    """Return the teachers' logits in the student's dtype, which theirs are not if they are constants under autocast."""
    return [teacher.to(student.dtype) for teacher in teachers]
