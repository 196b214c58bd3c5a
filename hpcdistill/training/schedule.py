"""Learning rate and weight decay of each step."""

from __future__ import annotations

import math

from torch.optim import Optimizer

from hpcdistill.config.optimizer import OptimizerConfig
from hpcdistill.config.schema import Config
from hpcdistill.errors import UserError


def set_rates(optimizer: Optimizer, config: Config, step: int, distill_weight: float) -> None:
    """Set the learning rate and the weight decay of the next step; they depend on the configuration and `step` only.

    Args:
        optimizer: a result of `build_optimizer`.
        config: the run.
        step: number of steps made.
        distill_weight: weight of the distillation term in the next step, which `codistill.lr_scale` and
            `codistill.weight_decay` follow.

    Raises:
        UserError: `codistill.weight_decay` is set, but the optimizer has no weight decay.
    """
    codistill = config.codistill
    share = distill_weight / codistill.weight if codistill.weight else 0.0
    rate = learning_rate(config.optimizer, step, config.train.steps) * _between(1.0, codistill.lr_scale, share)
    for group in optimizer.param_groups:
        group["lr"] = rate
    if codistill.weight_decay is None:
        return
    for group in optimizer.param_groups:
        if "weight_decay" not in group:
            raise UserError(
                f"codistill.weight_decay = {codistill.weight_decay:g}, but optimizer.name = "
                f"{config.optimizer.name!r} has no weight decay; omit --codistill.weight_decay"
            )
        if group["params"][0].ndim >= 2:  # the group that decays
            group["weight_decay"] = _between(config.optimizer.weight_decay, codistill.weight_decay, share)


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Return the learning rate of the step after `step` others: linear warm-up, then the decay.

    The floor would be reached after `steps` steps, so that the last step is made with a little more.
    """
    if step < config.warmup:
        return config.lr * (step + 1) / (config.warmup + 1)
    begin = config.warmup if config.decay_steps is None else steps - config.decay_steps
    progress = max(0.0, (step - begin) / max(1, steps - begin))
    if config.decay == "none":
        return config.lr
    remaining = (1 + math.cos(math.pi * progress)) / 2 if config.decay == "cosine" else 1 - progress
    return config.lr * _between(config.floor, 1.0, remaining)


def _between(begin: float, end: float, share: float) -> float:
    """Interpolate linearly; exact at a `share` of 0, and if both ends are equal."""
    return begin + (end - begin) * share
