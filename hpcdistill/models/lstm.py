"""Language model of the paper's Section 3.1, of any size."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import nn

from hpcdistill.config.section import MODEL_NAME, ModelConfig
from hpcdistill.data.datasets.factory import FactoryData
from hpcdistill.data.tokens.store import TokenStore
from hpcdistill.models.registry import register


class LSTMConfig(ModelConfig):
    """LSTM language model."""

    name: Literal["lstm"] = Field(default="lstm", description=MODEL_NAME)
    hidden: PositiveInt = 128
    """Units of each LSTM layer and, without projection, of the embedding; width of a 'transformer'."""
    layers: PositiveInt = 2
    """Number of LSTM layers, or of blocks of a 'transformer'; of a 'resnet', 18 or 50."""
    projection: NonNegativeInt = 0
    """Units that each LSTM layer's output, and the embedding, is projected to; 0 for no projection."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Fraction of units dropped after the embedding and after each layer."""


class LSTMLanguageModel(nn.Module):
    """Language model: embedding, LSTM layers each followed by layer normalization, and a linear head.

    The paper's model has two LSTM layers of 1024 units with layer normalization (Anil et al. 2018, Section 3.1).
    Here each layer's *output* is normalized and not its gates (Ba et al. 2016, Section 3.1), because the fused LSTM
    kernels of torch give no access to the gates, and are three times as fast on a CPU.

    Args:
        vocabulary: number of token values, V.
        hidden: units of the embedding and of each layer.
        layers: number of LSTM layers.
        projection: units of the embedding and of each layer's output (Sak et al. 2014); 0 for `hidden` units.
        dropout: fraction of units dropped after the embedding and after each layer.
    """

    def __init__(self, vocabulary: int, hidden: int, layers: int, projection: int, dropout: float) -> None:
        super().__init__()
        width = projection or hidden
        self.embedding = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(
            nn.LSTM(width, hidden, batch_first=True, proj_size=projection) for _ in range(layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return next-token logits, float [batch, time, V], for int64 tokens [batch, time]."""
        logits: torch.Tensor = self.head(self.hidden(tokens))
        return logits

    def hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the input of the head, float [batch, time, width]."""
        hidden: torch.Tensor = self.dropout(self.embedding(tokens))
        for lstm, norm in zip(self.layers, self.norms, strict=True):
            hidden = self.dropout(norm(lstm(hidden)[0]))
        return hidden


@register(LSTMConfig, TokenStore, FactoryData)
def build(config: LSTMConfig, store: TokenStore | FactoryData) -> LSTMLanguageModel:
    """Build the model for the vocabulary of `store`."""
    return LSTMLanguageModel(store.vocabulary, config.hidden, config.layers, config.projection, config.dropout)
