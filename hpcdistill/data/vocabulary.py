"""Ids for the categories that are frequent enough."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from hpcdistill.data.pieces import read_piece
from hpcdistill.data.rows import Array

MERGE_VALUES = 1 << 18


class Counts:
    """How often each value occurs. Memory grows with the number of different values only."""

    def __init__(self) -> None:
        self._values = np.empty(0, np.int64)
        self._counts = np.empty(0, np.int64)
        self._new: list[Array] = []

    def add(self, values: Array) -> None:
        """Count some more values, int64."""
        self._new.append(values)
        # As many as there are: so the work of merging stays in proportion to what is added.
        if sum(map(len, self._new)) > max(MERGE_VALUES, len(self._values)):
            self._merge()

    def at_least(self, count: int) -> Array:
        """The values that occur so often, sorted."""
        self._merge()
        return self._values[self._counts >= count]

    def _merge(self) -> None:
        values, counts = np.unique(np.concatenate([np.empty(0, np.int64), *self._new]), return_counts=True)
        self._new = []
        self._values, place = np.unique(np.concatenate([self._values, values]), return_inverse=True)
        # float64 is exact up to 2**53
        self._counts = np.bincount(place, np.concatenate([self._counts, counts])).astype(np.int64)


def count_training(paths: Iterable[Path], name: str, columns: Sequence[int]) -> list[Counts]:
    """Count the values ≥ 0 in the training rows of some columns of a [rows, columns] array that pieces have."""
    counts = [Counts() for _ in columns]
    for path in paths:
        values, validation = read_piece(path, name, "validation")
        for column, count in zip(columns, counts, strict=True):
            training = values[~validation, column]
            count.add(training[training >= 0])
    return counts


class Vocabulary:
    """Ids of values ≥ 0: 0 for a missing one (negative), 1 for one that is rare or was never counted, then the others.

    Args:
        counts: of each field.
        min_count: how often a value must occur to have an id of its own.
    """

    def __init__(self, counts: Sequence[Counts], min_count: int) -> None:
        self._known = [count.at_least(min_count) for count in counts]
        self.cardinalities = [2 + len(known) for known in self._known]

    def __call__(self, values: Array) -> Array:
        """[rows, fields] values to ids, int32."""
        ids = np.empty(values.shape, np.int32)
        for field, known in enumerate(self._known):
            ids[:, field] = _ids(known, values[:, field])
        return ids


def _ids(known: Array, values: Array) -> Array:
    place = np.searchsorted(known, values)
    found = np.append(known, -1)[place] == values
    return np.where(values < 0, 0, np.where(found, 2 + place, 1))
