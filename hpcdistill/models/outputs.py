"""Outputs of models, whatever they return them in."""

from __future__ import annotations

from typing import Any

from torch import nn


def model_outputs(model: nn.Module, *inputs: Any, **named: Any) -> Any:
    """Return what `model` returns, or its attribute `logits` if it has one, as the outputs of Hugging Face models."""
    outputs = model(*inputs, **named)
    return getattr(outputs, "logits", outputs)
