"""Ids of categories that are frequent enough.

A piece has its categories as `codes`, int32 [rows, fields], which are indices into `values`, int64, the concatenated
different values of all fields: those of field f begin at `begins[f]`, int64 [fields + 1]. `counts`, int64, has the
number of occurrences of each value in the training part. Negative values are missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from hpcdistill.data.arrays import Array
from hpcdistill.data.prepare.pieces import Piece, read_piece

MERGE_VALUES = 1 << 18


class Counts:
    """Numbers of occurrences of values. Memory grows with the number of different values only."""

    def __init__(self) -> None:
        self._values = np.empty(0, np.int64)
        self._counts = np.empty(0, np.int64)
        self._new: list[tuple[Array, Array]] = []
        self.missing = 0
        """Number of rows without a value."""

    def add(self, values: Array, counts: Array | None = None) -> None:
        """Add values, int64, each with its number of occurrences in `counts`, or once."""
        self._new.append((values, np.ones(len(values), np.int64) if counts is None else counts))
        # Merging whenever the size has doubled keeps the work proportional to what is added.
        if sum(len(values) for values, _ in self._new) > max(MERGE_VALUES, len(self._values)):
            self._merge()

    def at_least(self, count: int) -> Array:
        """Return the values that occur at least `count` times, sorted."""
        self._merge()
        return self._values[self._counts >= count]

    def summary(self) -> tuple[int, int]:
        """Return the number of different values, and the number of occurrences of all of them."""
        self._merge()
        return len(self._values), int(self._counts.sum())

    def _merge(self) -> None:
        values, counts = zip((self._values, self._counts), *self._new, strict=True)
        self._new = []
        self._values, place = np.unique(np.concatenate(values), return_inverse=True)
        # float64 is exact up to 2**53
        self._counts = np.bincount(place, np.concatenate(counts), len(self._values)).astype(np.int64)


def coded(columns: Sequence[tuple[Array, Array]], training: Array) -> Piece:
    """Return the arrays of a piece that describe its categories.

    Args:
        columns: codes, int32 [rows], and the values that they are indices into, int64, for each field.
        training: mask of the training part, bool [rows].
    """
    begins = np.cumsum([0, *(len(values) for _, values in columns)])
    codes = np.empty((len(training), len(columns)), np.int32)
    counts = np.zeros(begins[-1], np.int64)
    values = np.empty(begins[-1], np.int64)
    for field, ((places, unsorted), begin) in enumerate(zip(columns, begins, strict=False)):
        # Sorted, so that lookups in a vocabulary larger than the caches are close to each other.
        order = np.argsort(unsorted)
        rank = np.empty(len(order), np.int32)
        rank[order] = np.arange(begin, begin + len(order))
        codes[:, field] = rank[places]
        values[begin : begin + len(order)] = unsorted[order]
        counts[begin : begin + len(order)] = np.bincount(places[training], minlength=len(order))[order]
    return {"codes": codes, "values": values, "counts": counts, "begins": begins}


def count_training(paths: Iterable[Path], fields: int) -> list[Counts]:
    """Count the values >= 0 of each field in the training rows of all pieces."""
    counted = [Counts() for _ in range(fields)]
    for path in paths:
        add_counts(counted, *read_piece(path, "values", "counts", "begins"))
    return counted


def add_counts(counted: Sequence[Counts], values: Array, counts: Array, begins: Array) -> None:
    """Add the counts of a piece's training rows, by field."""
    known = (values >= 0) & (counts > 0)
    for count, (begin, end) in zip(counted, pairwise(begins), strict=True):
        here = slice(begin, end)
        count.add(values[here][known[here]], counts[here][known[here]])
        count.missing += int(counts[here][values[here] < 0].sum())


class Vocabulary:
    """Ids of values: 0 if missing (negative), 1 if rare or never counted, and one id for each other value from 2.

    Args:
        counts: counts of each field.
        min_count: minimum number of occurrences of a value with its own id.
    """

    def __init__(self, counts: Sequence[Counts], min_count: int) -> None:
        self._known = [count.at_least(min_count) for count in counts]
        self.cardinalities = [2 + len(known) for known in self._known]

    def ids(self, codes: Array, values: Array, begins: Array) -> Array:
        """Return the ids of a piece's categories, int32 [rows, fields]."""
        table = np.empty(len(values), np.int32)
        for known, (begin, end) in zip(self._known, pairwise(begins), strict=True):
            table[begin:end] = _ids(known, values[begin:end])
        return table[codes]


def _ids(known: Array, values: Array) -> Array:
    place = np.searchsorted(known, values)
    found = np.append(known, -1)[place] == values
    return np.where(values < 0, 0, np.where(found, 2 + place, 1))
