"""Memory of recurrent layers."""

from __future__ import annotations

from torch import nn


def flatten_recurrent(model: nn.Module) -> None:
    """Move the weights of each recurrent layer on a GPU into one block, which cuDNN needs.

    A deep copy of a model has scattered ones, which cuDNN would copy in each forward pass, with a warning.
    """
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()
