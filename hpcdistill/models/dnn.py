"""Click-through model of the paper's Section 3, of any size."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import nn

from hpcdistill.config.section import MODEL_NAME, ModelConfig
from hpcdistill.data.rows.store import RowStore
from hpcdistill.models.registry import register


class DNNConfig(ModelConfig):
    """Fully connected model of rows."""

    name: Literal["dnn"] = Field(description=MODEL_NAME)
    widths: tuple[PositiveInt, ...] = Field(default=(2560, 1024, 256), min_length=1)
    """Units of each hidden layer, such as 2560,1024,256."""
    embedding: PositiveInt = 16
    """Dimensions of the embedding of a category."""


class ClickDNN(nn.Module):
    """Binary classifier: embeddings and dense features, fully connected ReLU layers, and one logit.

    The paper's model for Criteo's data has layers of 2560, 1024 and 256 units (Anil et al. 2018, Section 3).
    All categorical fields share one embedding table, in which each field has its own rows.

    Args:
        dense: number of dense features, D.
        cardinalities: number of categories of each of the C categorical fields.
        widths: units of each hidden layer.
        embedding: dimensions of the embedding of a category.
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
        """Return the logit of label 1, float [batch], for float32 [batch, D] and integer ids [batch, C]."""
        embedded = self.embedding(categorical + self.offsets).flatten(1)
        logits: torch.Tensor = self.layers(torch.cat([dense, embedded], dim=1))
        return logits.squeeze(1)


@register(DNNConfig, RowStore)
def build(config: DNNConfig, store: RowStore) -> ClickDNN:
    """Build the model for the columns of `store`."""
    cardinalities = list(store.fields.categorical.values())
    return ClickDNN(len(store.fields.dense), cardinalities, config.widths, config.embedding)
