"""Measurements of a training step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hpcdistill.tasks.linear_objective import Hidden
from hpcdistill.tasks.objective import TrainingObjective

SAMPLED = 16
"""One in 16 targets is a sample for the share, or 64 of fewer: the exact share is not worth the time of two losses."""


def distillation_share(
    objective: TrainingObjective[Any],
    outputs: Any,
    target: Tensor,
    teachers: Sequence[Any],
    weight: float,
    temperature: float,
) -> Tensor:
    """Return the share of the distillation term in the gradient of the loss by the student's outputs, [], in [0, 1].

    It is ‖d‖ / (‖c‖ + ‖d‖), with c the gradient of the cross-entropy and d that of the distillation term, on evenly
    spread targets. The outputs are the logits, or the hidden states where the loss is fused with the head.

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

    def gradient(distill_weight: float) -> Tensor:
        loss = objective.loss(student, targets, others, distill_weight, temperature)
        return torch.autograd.grad(loss, leaf)[0].float()

    cross_entropy = gradient(0.0)
    distillation = (gradient(weight) - cross_entropy).norm()
    share: Tensor = distillation / (cross_entropy.norm() + distillation)
    return share


def _sampled(outputs: Any, sample: Callable[[Tensor], Tensor]) -> tuple[Any, Tensor]:
    """Return the outputs for a sample of targets, without history, and the tensor of them that is sampled."""
    if isinstance(outputs, Hidden):
        states = sample(outputs.states)
        bias = None if outputs.bias is None else outputs.bias.detach()
        return outputs._replace(states=states, weight=outputs.weight.detach(), bias=bias), states
    logits = sample(outputs)
    return logits, logits
