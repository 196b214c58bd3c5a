"""Measurements of a training step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hpcdistill.tasks.linear_objective import Hidden
from hpcdistill.tasks.objective import TrainingObjective

PART = 16
"""The share is measured on one in so many items of a batch: exactness is not worth the time of two more losses."""


def distillation_share(
    objective: TrainingObjective[Any],
    outputs: Any,
    target: Tensor,
    teachers: Sequence[Any],
    weight: float,
    temperature: float,
) -> Tensor:
    """Return the share of the distillation term in the gradient of the loss by the student's outputs, [], in [0, 1].

    It is ‖d‖ / (‖c‖ + ‖d‖), with c the gradient of the cross-entropy and d that of the distillation term, on the first
    items of the batch. The outputs are the logits, or the hidden states where the loss is fused with the head.

    Args:
        objective: computes the loss.
        outputs: the student's outputs; they keep their gradient.
        target: labels of the batch.
        teachers: each teacher's outputs.
        weight: weight of the distillation term.
        temperature: temperature of the distillation term.
    """
    items = slice(max(1, len(target) // PART))
    student, leaf = _detached(outputs, items)
    others = [_detached(teacher, items)[0] for teacher in teachers]

    def gradient(distill_weight: float) -> Tensor:
        loss = objective.loss(student, target[items], others, distill_weight, temperature)
        return torch.autograd.grad(loss, leaf)[0].float()

    leaf.requires_grad_()
    cross_entropy = gradient(0.0)
    distillation = (gradient(weight) - cross_entropy).norm()
    share: Tensor = distillation / (cross_entropy.norm() + distillation)
    return share


def _detached(outputs: Any, items: slice) -> tuple[Any, Tensor]:
    """Return the outputs for some items, without history, and the tensor of them that is one for each item."""
    if isinstance(outputs, Hidden):
        states = outputs.states.detach()[items]
        bias = None if outputs.bias is None else outputs.bias.detach()
        return outputs._replace(states=states, weight=outputs.weight.detach(), bias=bias), states
    logits: Tensor = outputs.detach()[items]
    return logits, logits
