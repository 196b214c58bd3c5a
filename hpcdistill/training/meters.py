"""Measurement of the two terms of the loss, on a sample of the targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hpcdistill.tasks.linear_objective import Hidden
from hpcdistill.tasks.objective import TrainingObjective

SAMPLED = 16
"""One in 16 targets is in the sample, or 64 of fewer: exact values are not worth the time of two losses."""


class Terms(NamedTuple):
    """Measurements of the loss, []."""

    share: Tensor
    """Share of the distillation term in the gradient of the loss by the student's outputs, in [0, 1]."""
    cross_entropy: Tensor
    """Mean loss without the distillation term, in nats."""


def measure_terms(
    objective: TrainingObjective[Any],
    outputs: Any,
    target: Tensor,
    teachers: Sequence[Any],
    weight: float,
    temperature: float,
) -> Terms:
    """Return measurements of the loss on evenly spread targets.

    The share is ‖d‖ / (‖c‖ + ‖d‖), with c the gradient of the cross-entropy and d that of the distillation term. The
    outputs are the logits, or the hidden states where the loss is fused with the head.

    Args:
        objective: computes the loss.
        outputs: the student's outputs; they keep their gradient.
        target: labels of the batch.
        teachers: each teacher's outputs.
        weight: weight of the distillation term.
        temperature: temperature of the distillation term.
    """
    every = min(SAMPLED, max(1, target.numel() // 64))

    def sample(tensor: Tensor) -> Tensor:
        return tensor.detach().flatten(0, target.ndim - 1)[::every]

    student, leaf = _sampled(outputs, sample)
    others = [_sampled(teacher, sample)[0] for teacher in teachers]
    targets = sample(target)
    leaf.requires_grad_()

    def differentiated(distill_weight: float) -> tuple[Tensor, Tensor]:
        loss = objective.loss(student, targets, others, distill_weight, temperature)
        return torch.autograd.grad(loss, leaf)[0].float(), loss.detach()

    label, cross_entropy = differentiated(0.0)
    distillation = (differentiated(weight)[0] - label).norm()
    return Terms(distillation / (label.norm() + distillation), cross_entropy)


def _sampled(outputs: Any, sample: Callable[[Tensor], Tensor]) -> tuple[Any, Tensor]:
    """Return the outputs for a sample of targets, without history, and the tensor of them that is sampled."""
    if isinstance(outputs, Hidden):
        states = sample(outputs.states)
        bias = None if outputs.bias is None else outputs.bias.detach()
        return outputs._replace(states=states, weight=outputs.weight.detach(), bias=bias), states
    logits = sample(outputs)
    return logits, logits
