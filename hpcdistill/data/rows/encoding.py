"""Pieces of a table, and their encoding as rows once all of them exist.

A piece has, besides the arrays of `categories.py`:

dense        float32 [rows, D], in units of the piece, as float32 has too few digits for times or ids
units        float64 [D, 2], offset and scale of these units
moments      float64 [D, 3], count, mean and standard deviation of the training part
label        uint8 [rows], index into the labels that occur
seen         JSON: the labels, and a `Seen` for each column
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow

from hpcdistill.data.arrays import Array
from hpcdistill.data.prepare.bad_records import bad_arrays
from hpcdistill.data.prepare.pieces import Piece, read_piece
from hpcdistill.data.prepare.split import in_validation
from hpcdistill.data.rows.categories import Counts, Vocabulary, add_counts, coded
from hpcdistill.data.rows.chunk import Chunk
from hpcdistill.data.rows.columns import Column, Seen, as_texts, is_missing, read_categories, read_numbers
from hpcdistill.data.rows.label import SHOWN, Label
from hpcdistill.data.rows.store import Fields, Rows

LARGEST = 1e38  # about the largest float32


class Moments(NamedTuple):
    """Count, mean and standard deviation of some numbers."""

    size: float
    mean: float
    deviation: float


def make_piece(columns: Sequence[Column], chunk: Chunk) -> Piece:
    """Make the piece of some rows; their first column is the label, and the others are `columns`."""
    labels, places = _read_labels(chunk.columns[0])
    missing = np.append(is_missing(labels), True)[places]
    if missing.any():
        rows = np.flatnonzero(missing).tolist()
        chunk.bad.extend((int(chunk.lines[row]), f"{chunk.place(row)}: no label") for row in rows)
        chunk, places = chunk.at(~missing), places[~missing]
    validation = in_validation(chunk.numbers)
    order = np.argsort(validation, kind="stable")  # the training part first, as it will be stored
    seen = []
    dense, units, moments = list[Array](), list[tuple[float, float]](), list[Moments]()
    codes = list[tuple[Array, Array]]()
    for column, cells in zip(columns, chunk.columns[1:], strict=True):
        if column.kind == "dense":
            values, found = read_numbers(chunk, cells)
            moments.append(measure(values[~validation]))
            units.append(_unit(values, moments[-1]))
            with np.errstate(over="ignore"):  # of the validation part; see `Encoding`
                dense.append(((values[order] - units[-1][0]) / units[-1][1]).astype(np.float32))
        else:
            coding, values, found = read_categories(chunk, cells, column.said_by is not None)
            codes.append((coding[order], values))
        seen.append(asdict(found))
    used = np.flatnonzero(np.bincount(places))[: SHOWN + 1]
    told = json.dumps({"labels": labels.take(pyarrow.array(used)).to_pylist(), "columns": seen})
    return {
        "dense": np.stack(dense, axis=1) if dense else np.empty((len(validation), 0), np.float32),
        "units": np.array(units).reshape(-1, 2),
        "moments": np.array(moments).reshape(-1, 3),
        "label": np.searchsorted(used, places[order]).astype(np.uint8),
        "validation": validation[order],
        "seen": np.frombuffer(told.encode(), np.uint8),
        **coded(codes, ~validation[order]),
        **bad_arrays([quotation for _, quotation in sorted(chunk.bad)]),
    }


def _read_labels(column: pyarrow.Array) -> tuple[pyarrow.Array, Array]:
    """Return the different labels as text, and the index of each row's label; that of null is their number."""
    encoded = column if pyarrow.types.is_dictionary(column.type) else column.dictionary_encode()
    return as_texts(encoded.dictionary), encoded.indices.fill_null(len(encoded.dictionary)).to_numpy()


def measure(values: Array) -> Moments:
    """Return the moments of the numbers that are not NaN."""
    known = values[~np.isnan(values)]
    if not len(known):
        return Moments(0, 0, 0)
    centre, offsets = known[0], known - known[0]
    scale = max(offsets.max(), -offsets.min()) or 1.0  # squares of numbers in [-1, 1] do not overflow
    offsets /= scale
    mean = offsets.mean()
    offsets -= mean  # exactly 0 if all numbers are equal
    deviation = scale * np.sqrt(np.dot(offsets, offsets) / len(offsets))
    return Moments(len(known), float(centre + scale * mean), float(deviation))


def combine(counts: Array, means: Array, deviations: Array) -> Moments:
    """Return the moments of all numbers from those of disjoint parts, [parts]; as exact as `measure`."""
    there = counts > 0
    if not there.any():
        return Moments(0, 0, 0)
    shares = counts[there] / counts.sum()
    centre = means[there][0]
    offsets, deviations = means[there] - centre, deviations[there]
    scale = max(np.abs(offsets).max(), deviations.max()) or 1.0
    offsets, deviations = offsets / scale, deviations / scale
    mean = (shares * offsets).sum()
    variance = (shares * (deviations**2 + (offsets - mean) ** 2)).sum()
    return Moments(float(counts.sum()), float(centre + scale * mean), float(scale * np.sqrt(variance)))


def _unit(values: Array, training: Moments) -> tuple[float, float]:
    """Return an offset and a positive scale with which float32 has enough digits for the values."""
    known = values[~np.isnan(values)]
    zero = training.mean if training.size else known[0] if len(known) else 0.0
    return zero, training.deviation or abs(zero) or 1.0


class Found(NamedTuple):
    """Labels, counts and moments of all pieces together."""

    labels: set[str]
    seen: list[Seen]
    """Counts and examples of the values of each column."""
    moments: list[Moments]
    """Moments of each dense column's training part."""
    counts: list[Counts]
    """Counts of each categorical column's values in the training part."""


def read_found(paths: Sequence[Path], columns: Sequence[Column]) -> Found:
    """Combine the findings of all pieces."""
    labels, seen, moments = set[str](), [Seen() for _ in columns], []
    counts = [Counts() for column in columns if column.kind == "categorical"]
    for path in paths:
        told, of_piece, *counted = read_piece(path, "seen", "moments", "values", "counts", "begins")
        told = json.loads(told.tobytes())
        labels.update(told["labels"])
        for column, more in zip(seen, told["columns"], strict=True):
            column.add(Seen(**more))
        moments.append(of_piece)
        add_counts(counts, *counted)
    by_column = np.stack(moments).transpose(1, 2, 0)
    return Found(labels, seen, [combine(*of_column) for of_column in by_column], counts)


class Encoding:
    """Encoding of the rows of pieces as those of a store.

    Attributes:
        fields: fields of the store.
    """

    def __init__(self, columns: Sequence[Column], found: Found, label: Label) -> None:
        self._label, self._moments, self._ids = label, found.moments, Vocabulary(found.counts, 1)
        dense = [column.name for column in columns if column.kind == "dense"]
        categorical = [column.name for column in columns if column.kind == "categorical"]
        self.fields = Fields(dense, dict(zip(categorical, self._ids.cardinalities, strict=True)))

    def __call__(self, path: Path) -> tuple[Rows, Array]:
        """Read a piece; return its rows, and a mask of those of the validation part, bool [rows]."""
        dense, units, label, seen, validation, *coded = read_piece(
            path, "dense", "units", "label", "seen", "validation", "codes", "values", "begins"
        )
        for column, (zero, unit) in enumerate(units):
            size, mean, deviation = self._moments[column]
            values = dense[:, column]
            if not deviation:
                values[:] = 0  # no information
                continue
            with np.errstate(over="ignore"):
                values *= np.float32(min(unit / deviation, LARGEST))
                values += np.float32((zero - mean) / deviation)
            # The bound of the training values: none is farther from the mean.
            values[validation] = np.clip(values[validation], -np.sqrt(size), np.sqrt(size))
        dense[np.isnan(dense)] = 0
        ones = np.array([self._label.is_one(value) for value in json.loads(seen.tobytes())["labels"]], np.uint8)
        return Rows(dense, self._ids.ids(*coded), ones[label]), validation
