"""Section `optimizer` of a configuration."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from hpcdistill.config.section import Section


class OptimizerConfig(Section):
    """Optimizer and learning rate."""

    name: Literal["adam", "sgd"] = "adam"
    """Update rule."""
    lr: PositiveFloat = 1e-2
    """Learning rate after the warm-up."""
    warmup: NonNegativeInt = 0
    """Steps of the warm-up, in which the learning rate rises linearly to `lr`."""
    decay: Literal["none", "linear", "cosine"] = "none"
    """Decay of the learning rate from the end of the warm-up to zero after the last step."""
    momentum: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Momentum of 'sgd'."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay: decoupled from the gradient with 'adam' (AdamW), part of the gradient with 'sgd'."""
