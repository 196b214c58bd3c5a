"""The click-through model of the paper's Section 3, at any size."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn


class ClickDNN(nn.Module):
    """Embeddings and dense features through fully connected ReLU layers to one logit.

    The paper's model for Criteo's data has layers of 2560, 1024 and 256 units (Anil et al. 2018, Section 3).
    All fields share one table, in which each has rows of its own.

    Args:
        dense: number of dense features, D.
        cardinalities: of each of the C categorical fields.
        widths: units of each hidden layer.
        embedding: numbers for each category.
    """

    offsets: torch.Tensor

    def __init__(self, dense: int, cardinalities: Sequence[int], widths: Sequence[int], embedding: int) -> None:
        super().__init__()
        sizes = torch.tensor([0, *cardinalities])
        self.register_buffer("offsets", sizes.cumsum(0)[:-1], persistent=False)
        self.embedding = nn.Embedding(int(sizes.sum()), embedding)
        nn.init.normal_(self.embedding.weight, std=embedding**-0.5)
        layers: list[nn.Module] = []
        for inside, outside in pairwise([dense + embedding * len(cardinalities), *widths]):
            layers += [nn.Linear(inside, outside), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], 1))

    def forward(self, dense: torch.Tensor, categorical: torch.Tensor) -> torch.Tensor:
        """Log odds of a click, float [batch], for float32 [batch, D] and integer ids [batch, C]."""
        embedded = self.embedding(categorical + self.offsets).flatten(1)
        logits: torch.Tensor = self.layers(torch.cat([dense, embedded], dim=1))
        return logits.squeeze(1)
