"""Section `optimizer` of a configuration."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from hpcdistill.config.section import Arguments, Section


class OptimizerConfig(Section):
    """Optimizer and learning rate."""

    name: Literal["adamw", "sgd"] | str = "adamw"
    """Optimizer: 'adamw', 'sgd', or a class of your own or of torch as package.module:Class, such as
    torch.optim:Adagrad."""
    args: Arguments = Field(default={})
    """Further arguments of the optimizer's class, such as {"betas": [0.9, 0.95]}: a table in the file, JSON on the
    command line."""
    lr: PositiveFloat = 1e-2
    """Learning rate after the warm-up."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay of parameters with two or more dimensions; none for biases and norms. Decoupled from the gradient
    with 'adamw', part of the gradient with 'sgd'."""
    warmup: NonNegativeInt = 0
    """Steps of the warm-up, in which the learning rate rises linearly to `lr`."""
    decay: Literal["none", "linear", "cosine", "wsd"] = "none"
    """Decay of the learning rate from the end of the warm-up to the floor after the last step; with 'wsd'
    (warmup-stable-decay) a linear decay in the last `decay_steps` steps only."""
    decay_steps: PositiveInt | None = None
    """Steps of the decay of 'wsd'."""
    floor: float = Field(default=0.0, ge=0.0, le=1.0)
    """Learning rate at the end of the decay, as a fraction of `lr`."""

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if name not in ("adamw", "sgd") and ":" not in name:
            raise ValueError("neither 'adamw' nor 'sgd'; use one of them, or name a class as package.module:Class")
        return name

    @field_validator("args")
    @classmethod
    def _check_args(cls, args: dict[str, Any]) -> dict[str, Any]:
        for key in {"lr", "weight_decay"} & args.keys():
            raise ValueError(f"optimizer.args has {key}, which is a key of its own; set optimizer.{key}")
        return args
