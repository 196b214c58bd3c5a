"""Training objective of a softmax that is fused with the model's head, so that the logits are never all in memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpcdistill.errors import UserError
from hpcdistill.losses.linear import linear_codistillation_loss
from hpcdistill.models.outputs import model_outputs
from hpcdistill.tasks.objective import TrainingObjective

ENLARGEMENT = 1024.0
"""Factor of the head's weights in a comparison of logits: those of initial weights are too small to show a soft cap."""
TOLERANCE = (1e-3, 5e-2)
"""Largest difference in that comparison, by the largest logit, in float32 and in bfloat16."""


class Hidden(NamedTuple):
    """Hidden states of a model, and what turns them into logits: `softcap * tanh(scale * (states @ Wᵀ + b) / softcap)`.

    Without a soft cap logits are `scale * (states @ Wᵀ + b)`.
    """

    states: Tensor
    """[..., D]"""
    weight: Tensor
    """[V, D]"""
    bias: Tensor | None
    """[V]"""
    scale: float = 1.0
    softcap: float | None = None

    def logits(self) -> Tensor:
        """Return the logits, [..., V]."""
        logits = functional.linear(self.states, self.weight, self.bias) * self.scale
        return logits if self.softcap is None else self.softcap * (logits / self.softcap).tanh()


class FusedSoftmax(TrainingObjective[Hidden]):
    """Training objective like `Softmax`, for models whose last layer is linear.

    These are models with a method `hidden` and an `nn.Linear` named `head`, and causal language models of the library
    transformers, with their scaling and soft-capping of logits.

    Args:
        classes: number of classes, V.
        model: the student.
        sample: a few inputs, of which the logits of `model` are compared with those of its head. Two tokens for a model
            of transformers, if they are omitted; no comparison for others.

    Raises:
        UserError: the model has no such head, or its logits are not those of the head.
    """

    def __init__(self, classes: int, model: nn.Module, sample: tuple[Tensor, ...] = ()) -> None:
        head = _head(model)
        if not sample and not _has_hidden(model):
            sample = (torch.zeros(1, 2, dtype=torch.int64),)
        if sample and not self._predicts_as(model, head, sample):
            raise UserError(
                f"codistill.fused_linear: the logits of {type(model).__name__} are not those of its head for its last "
                "hidden states; omit --codistill.fused_linear"
            )
        self.chance_loss = math.log(classes)
        self.uniform = torch.zeros(classes)

    def outputs(self, model: nn.Module, *inputs: Any, **named: Any) -> Hidden:
        """See `TrainingObjective`; under autocast the states have its dtype, as the logits of the head would."""
        head = _head(model)
        if _has_hidden(model):
            states = cast(Callable[..., Tensor], model.hidden)(*inputs, **named)
            return Hidden(_cast(states), head.weight, head.bias)
        states = cast(nn.Module, model.base_model)(*inputs, **named)[0]
        return Hidden(_cast(states), head.weight, head.bias, *_scaling(model))

    @torch.no_grad()
    def _predicts_as(self, model: nn.Module, head: nn.Linear, sample: tuple[Tensor, ...]) -> bool:
        """Return True if the logits of `model` are those of its head, within the precision of its weights."""
        dtype, device = head.weight.dtype, head.weight.device
        inputs, was_training = [each.to(device) for each in sample], model.training
        model.eval()
        head.weight.mul_(ENLARGEMENT)  # and back, which is exact: a power of 2
        try:
            with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
                expected = model_outputs(model, *inputs).float()
                logits = self.outputs(model, *inputs).logits().float()
        finally:
            head.weight.div_(ENLARGEMENT)
            model.train(was_training)
        tolerance = TOLERANCE[dtype == torch.bfloat16] * expected.abs().max()
        return logits.shape == expected.shape and bool(((logits - expected).abs() <= tolerance).all())

    def logits(self, outputs: Hidden, dimensions: int, chosen: slice) -> Tensor:
        """See `TrainingObjective`."""
        return outputs._replace(states=outputs.states.flatten(0, dimensions - 1)[chosen]).logits()

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
            logit_scale=outputs.scale,
            logit_softcap=outputs.softcap,
            teacher_logit_scale=[teacher.scale for teacher in teachers],
            teacher_logit_softcap=[teacher.softcap for teacher in teachers],
            distill_weight=distill_weight,
            temperature=temperature,
        )

    def cross_entropy(self, outputs: Hidden, target: Tensor) -> Tensor:
        """See `TrainingObjective`."""
        return linear_codistillation_loss(
            outputs.states,
            outputs.weight,
            target,
            linear_bias=outputs.bias,
            logit_scale=outputs.scale,
            logit_softcap=outputs.softcap,
            reduction="none",
        )


def _has_hidden(model: nn.Module) -> bool:
    return callable(getattr(model, "hidden", None))


def _head(model: nn.Module) -> nn.Linear:
    """Return the last layer of `model`.

    Raises:
        UserError: there is none, or it is not linear.
    """
    if _has_hidden(model):
        head = getattr(model, "head", None)
    else:
        head = cast(Callable[[], Any], getattr(model, "get_output_embeddings", lambda: None))()
    if not isinstance(head, nn.Linear):
        raise UserError(
            "codistill.fused_linear needs a model with a method `hidden` and an nn.Linear `head`, or a causal language "
            f"model of transformers; {type(model).__name__} is neither; add them, or omit --codistill.fused_linear"
        )
    return head


def _scaling(model: nn.Module) -> tuple[float, float | None]:
    """Return the factor of the logits of a model of transformers, and their soft cap."""
    config = cast(Any, model.config).get_text_config()
    factor = getattr(config, "logit_scale", None) or 1.0  # of Cohere
    divisor = getattr(config, "logits_scaling", None) or 1.0  # of Granite
    return factor / divisor, getattr(config, "final_logit_softcapping", None)  # of Gemma


def _cast(states: Tensor) -> Tensor:
    """Return states in the dtype that autocast gives the input of a linear layer, for a loss that is outside of it."""
    device = states.device.type
    return states.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else states
