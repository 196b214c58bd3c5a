"""Classification by a rule without noise: as many examples as asked for, none of them twice, and a small model."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from hpcdistill.data.batches import Share

INPUTS, HIDDEN, CLASSES = 16, 64, 10
VALIDATION_BATCHES, VALIDATION_BATCH = 8, 2048

Example = tuple[Tensor, Tensor]


class Rule:
    """Random network of two hidden layers, whose largest output names the class."""

    def __init__(self) -> None:
        random = np.random.default_rng(7)
        sizes = (INPUTS, HIDDEN, HIDDEN, CLASSES)
        self._layers = [
            random.standard_normal((inside, outside), np.float32) * np.float32(1.5 / inside**0.5)
            for inside, outside in pairwise(sizes)
        ]

    def draw(self, random: np.random.Generator, count: int) -> Example:
        """Draw inputs, float32 [count, INPUTS], and return them with their classes, int64 [count]."""
        inputs = hidden = random.standard_normal((count, INPUTS), np.float32)
        for weights in self._layers[:-1]:
            hidden = np.maximum(hidden @ weights, 0)
        return torch.from_numpy(inputs), torch.from_numpy((hidden @ self._layers[-1]).argmax(1))


class Batches:
    """Loader of batches, without end unless `count` limits them; each iteration begins anew."""

    def __init__(self, seed: tuple[int, ...], size: int, count: int | None = None) -> None:
        self._seed, self._size, self._count = seed, size, count

    def __iter__(self) -> Iterator[Example]:
        rule, random, drawn = Rule(), np.random.default_rng(self._seed), 0
        while self._count is None or drawn < self._count:
            yield rule.draw(random, self._size)
            drawn += 1


def load(share: Share, batch_size: int) -> tuple[Batches, Batches]:
    """Return training batches of a rank, and its validation batches."""
    training = Batches((*share.seed, share.shard, 1), batch_size)
    return training, Batches((share.rank, 2), VALIDATION_BATCH, VALIDATION_BATCHES)


def make_model(width: int) -> nn.Module:
    """Return a network of two hidden layers of `width` units, for float32 [batch, INPUTS]."""
    return nn.Sequential(
        *(nn.Linear(INPUTS, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, CLASSES))
    )
