"""Activation checkpointing: activations that are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hpcdistill.errors import UserError

HUGGING_FACE = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
"""Names of the method of Hugging Face models, the newer one first; it takes options of `checkpoint`."""


def checkpoint_activations(model: nn.Module) -> None:
    """Make `model` compute the activations of each of its blocks again in the backward pass, in place.

    A Hugging Face model does so by itself; of others, the blocks are the modules of the `nn.ModuleList` that has most
    parameters. Names in `state_dict` stay the same, and so do forward passes without gradient, as those of teachers.

    Raises:
        UserError: the model has no such list, or is one of Hugging Face that cannot do it.
    """
    enable = next((each for name in HUGGING_FACE if callable(each := getattr(model, name, None))), None)
    if enable:
        try:
            enable({"use_reentrant": False})
        except ValueError as error:
            raise UserError(f"train.activation_checkpointing = true: {error}; omit it") from None
        return
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise UserError(
            f"train.activation_checkpointing = true needs a model with its blocks in an nn.ModuleList, which "
            f"{type(model).__name__} does not have; put them into one, or omit --train.activation_checkpointing"
        )
    for block in max(lists, key=lambda blocks: sum(parameter.numel() for parameter in blocks.parameters())):
        # Of bound methods and partials, copy.deepcopy makes those of the copy: replicas do not use this model's blocks.
        block.forward = partial(_forward, block.forward)


def _forward(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
