"""Optimizers and learning rate schedules."""

from __future__ import annotations

import math

import torch
from torch import nn

from hpcdistill.config.optimizer import OptimizerConfig


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Return the configured optimizer of all parameters of `model`."""
    if config.name == "adam":
        return torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(model.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)


def set_learning_rate(optimizer: torch.optim.Optimizer, config: OptimizerConfig, step: int, steps: int) -> None:
    """Set the learning rate of the next step, after `step` of `steps` steps; it depends on nothing else."""
    rate = learning_rate(config, step, steps)
    for group in optimizer.param_groups:
        group["lr"] = rate


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Return the learning rate of the step after `step` others: linear warm-up, then a decay to zero after `steps`."""
    if step < config.warmup:
        return config.lr * (step + 1) / (config.warmup + 1)
    progress = (step - config.warmup) / max(1, steps - config.warmup)
    if config.decay == "cosine":
        return config.lr * (1 + math.cos(math.pi * progress)) / 2
    return config.lr * (1 - progress) if config.decay == "linear" else config.lr
