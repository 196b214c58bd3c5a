"""Precision of a training: autocast, weights in bfloat16, and TF32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context in which models compute for `train.precision`; losses are computed outside of it.

    Weights in bfloat16 need autocast, too: it casts the inputs, and keeps the sums of normalizations in float32.
    """
    return nullcontext() if precision == "float32" else torch.autocast(device.type, torch.bfloat16)


def to_bfloat16(model: nn.Module) -> None:
    """Convert parameters and buffers of `model` to bfloat16, in place.

    Buffers that checkpoints do not hold keep their dtype: they are constants, such as the frequencies of rotary
    positions, which a model that is built again from a checkpoint has in float32.
    """
    saved = model.state_dict().keys()
    constants = {name: buffer for name, buffer in model.named_buffers(remove_duplicate=False) if name not in saved}
    model.to(torch.bfloat16)
    for name, buffer in constants.items():
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, buffer)


def allow_tf32() -> None:
    """Allow NVIDIA GPUs to round the inputs of float32 matrix products to TF32, in this process."""
    torch.backends.cuda.matmul.allow_tf32 = True
