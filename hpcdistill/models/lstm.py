"""The language model of the paper's Section 3.1, at any size."""

from __future__ import annotations

import torch
from torch import nn


class LSTMLanguageModel(nn.Module):
    """Embedding, LSTM layers each followed by layer normalisation, and a linear head.

    The paper's model has two LSTM layers of 1024 units with layer normalisation (Anil et al. 2018, Section 3.1).
    Here each layer's *output* is normalised rather than its gates (Ba et al. 2016, Section 3.1), because the fused
    LSTM kernels of torch leave the inside of the cell out of reach and are three times as fast on a CPU.

    Args:
        vocabulary: number of token values, V.
        hidden: units of the embedding and of each layer.
        layers: number of LSTM layers.
        projection: units of the embedding and of each layer's output (Sak et al. 2014); 0 for `hidden` units.
        dropout: share of units dropped after the embedding and after each layer.
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
        """Next-token logits, float [batch, time, V], for int64 tokens [batch, time]."""
        logits: torch.Tensor = self.head(self.hidden(tokens))
        return logits

    def hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        """What the head makes logits of, float [batch, time, width]."""
        hidden: torch.Tensor = self.dropout(self.embedding(tokens))
        for lstm, norm in zip(self.layers, self.norms, strict=True):
            hidden = self.dropout(norm(lstm(hidden)[0]))
        return hidden
