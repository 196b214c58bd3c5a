"""The student's forward pass as a module, which a gradient backend can wrap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


class Forward(nn.Module):
    """Module whose forward pass is a function of a model, such as one that returns hidden states for a fused head.

    DistributedDataParallel averages gradients only after a forward pass of the module that it wraps.

    Args:
        outputs: function `(model, *inputs, **named)` that returns what the loss takes.
        model: the model.
    """

    def __init__(self, outputs: Callable[..., Any], model: nn.Module) -> None:
        super().__init__()
        self.outputs = outputs
        self.model = model

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Return the outputs for the inputs of a batch."""
        return self.outputs(self.model, *inputs, **named)
