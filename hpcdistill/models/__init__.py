"""The models that `[model] name` can build."""

from __future__ import annotations

from torch import nn

from hpcdistill.config import LSTMConfig
from hpcdistill.models.lstm import LSTMLanguageModel


def build_model(config: LSTMConfig, vocabulary: int) -> nn.Module:
    """The configured model, freshly initialised, for tokens in [0, `vocabulary`)."""
    return LSTMLanguageModel(vocabulary, config.hidden, config.layers, config.dropout)
