"""What a model's output is a prediction of, and how it is learned: by the losses of this package."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpcdistill.losses.binary import binary_codistillation_loss
from hpcdistill.losses.codistillation import codistillation_loss


class Objective(Protocol):
    """What a model's outputs are and how they are judged.

    Outputs are tensors, but for those of `fused_head.FusedSoftmax`, which only its own losses know.
    """

    guessing: float
    """The cross-entropy, in nats, of a prediction that knows nothing."""
    uniform: Tensor
    """That prediction: logits for one target."""

    def outputs(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
        """What `model` makes of a batch's inputs."""

    def always(self, prior: Tensor, target: Tensor) -> Any:
        """Outputs that are `prior`, logits for one target, whatever the inputs of a batch with such a target."""

    def loss(self, outputs: Any, target: Tensor, teachers: list[Any], weight: float, temperature: float) -> Tensor:
        """The mean loss of a batch, with the distillation term; teachers' outputs are shaped as `outputs`."""

    def cross_entropy(self, outputs: Any, target: Tensor) -> Tensor:
        """In nats for each target, shaped as `target`; float32."""

    def ensemble(self, outputs: Sequence[Tensor]) -> Tensor:
        """Outputs that predict the mean of the probabilities that `outputs` predict; float32, shaped as each of them.

        All in logarithms, so that what is almost certain does not become certain.
        """

    def distance(self, one: Tensor, other: Tensor) -> Tensor:
        """Total variation distance of two predictions, from 0 to 1 for each target; float32, shaped as a target.

        That is the sum of the absolute differences of all answers' probabilities, halved.
        """

    def answer(self, outputs: Tensor) -> Tensor:
        """The likeliest answers, to be compared with a target and shaped as it."""


class _Logits:
    """Outputs as the model gives them."""

    def outputs(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        """See `Objective`."""
        logits: Tensor = model(*inputs)
        return logits

    def always(self, prior: Tensor, target: Tensor) -> Tensor:
        """See `Objective`."""
        return prior.expand(*target.shape, *prior.shape)


class Softmax(_Logits):
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

    def ensemble(self, outputs: Sequence[Tensor]) -> Tensor:
        """See `Objective`."""
        return torch.stack([one.float().log_softmax(-1) for one in outputs]).logsumexp(0) - math.log(len(outputs))

    def distance(self, one: Tensor, other: Tensor) -> Tensor:
        """See `Objective`."""
        return (one.float().softmax(-1) - other.float().softmax(-1)).abs().sum(-1) / 2

    def answer(self, outputs: Tensor) -> Tensor:
        """See `Objective`."""
        return outputs.argmax(-1)


class Binary(_Logits):
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

    def ensemble(self, outputs: Sequence[Tensor]) -> Tensor:
        """See `Objective`."""
        logits = torch.stack([one.double() for one in outputs])  # around 0, float32 would forget their order
        return (functional.logsigmoid(logits).logsumexp(0) - functional.logsigmoid(-logits).logsumexp(0)).float()

    def distance(self, one: Tensor, other: Tensor) -> Tensor:
        """See `Objective`; both answers' probabilities differ by as much."""
        return (one.float().sigmoid() - other.float().sigmoid()).abs()

    def answer(self, outputs: Tensor) -> Tensor:
        """See `Objective`."""
        return (outputs > 0).float()
