"""The HDF5 store of rows: features with a label of 0 or 1, checksummed chunk by chunk.

/                           attributes: format, version, source, identity, fields
/train                      attribute bayes_log_loss, nan where nobody knows it
/train/dense                float32 [rows, D], Fletcher-32 checksum on each chunk
/train/categorical          int32 [rows, C]
/train/label                uint8 [rows]
/validation                 the same

`fields` is JSON: {"dense": [names], "categorical": {name: cardinality}}. Each categorical field has ids of its
own, from 0, so that a model is free to have a table for each field, or one for all by adding offsets.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from hpcdistill.data.arrays import Array
from hpcdistill.data.store import PARTS, StoreFile, seal
from hpcdistill.errors import UserError
from hpcdistill.storage.hdf5 import atomic_file, growing

CHUNK_ROWS = 1024  # also the unit in which checksums are verified


class Rows(NamedTuple):
    """Some rows, column by column."""

    dense: Array  # float32 [rows, D]
    categorical: Array  # int32 [rows, C]
    label: Array  # uint8 [rows]

    def at(self, index: Any) -> Rows:
        """The rows that a slice, a mask or a list of numbers selects."""
        return Rows(self.dense[index], self.categorical[index], self.label[index])


@dataclass(frozen=True)
class Fields:
    """What the columns are."""

    dense: list[str]
    """Names of the dense fields."""
    categorical: dict[str, int]
    """Name and cardinality of the categorical fields: ids are in [0, cardinality)."""


def write_rows(
    path: Path,
    pieces: Iterable[tuple[str, Rows]],
    fields: Fields,
    source: str,
    bayes_log_loss: Mapping[str, float] | None = None,
) -> dict[str, int]:
    """Write a store from (part, rows) pieces, in order; memory stays bounded by the largest piece.

    Args:
        path: the file to make; replaced only when all pieces are written.
        pieces: each with one of `PARTS` and the rows to append to it.
        fields: what the columns are.
        source: where the rows are from, for reports.
        bayes_log_loss: for each part the mean loss, in nats, that no model can better; where it is known.

    Returns:
        Rows per part.
    """
    with atomic_file(path) as (file, _):
        parts = {name: _Part(file.create_group(name), fields) for name in PARTS}
        with ThreadPoolExecutor(1) as hashing:
            for name, rows in pieces:
                parts[name].append(rows, hashing)
        identity = hashlib.blake2b(json.dumps(asdict(fields)).encode(), digest_size=16)
        for name, part in parts.items():
            part.group.attrs["bayes_log_loss"] = (bayes_log_loss or {}).get(name, np.nan)
            for digest in part.digests:
                identity.update(digest.digest())
        seal(file, RowStore, source, identity.hexdigest(), fields=json.dumps(asdict(fields)))
        return {name: part.rows for name, part in parts.items()}


class _Part:
    """A part while it grows."""

    def __init__(self, group: h5py.Group, fields: Fields) -> None:
        self.group = group
        self.rows = 0
        self._columns = [
            growing(group, "dense", np.float32, CHUNK_ROWS, len(fields.dense)),
            growing(group, "categorical", np.int32, CHUNK_ROWS, len(fields.categorical)),
            growing(group, "label", np.uint8, CHUNK_ROWS),
        ]
        self.digests = [hashlib.blake2b() for _ in self._columns]  # by column: pieces may be cut anywhere

    def append(self, rows: Rows, hashing: ThreadPoolExecutor) -> None:
        """Write some more rows, while `hashing` makes their digests."""
        begin, self.rows = self.rows, self.rows + len(rows.label)
        for column, digest, given in zip(self._columns, self.digests, rows, strict=True):
            values = np.ascontiguousarray(given, column.dtype)
            hashed = hashing.submit(digest.update, values.data)
            column.resize(self.rows, axis=0)
            column[begin:] = values
            hashed.result()


class RowStore(StoreFile):
    """A store of rows, open for reading; see `StoreFile`.

    Attributes:
        fields: what the columns are.
    """

    KIND, COMMAND = "a store of rows", "hpcdistill prepare criteo --input FILE"
    FORMAT, VERSION = "hpcdistill-rows", 2

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with self._intact("what its columns are"):
            self.fields = Fields(**json.loads(self._attributes["fields"]))
            self._cardinalities = np.array(list(self.fields.categorical.values()), np.int64)
            self._bayes_log_loss = {part: float(self._file[part].attrs["bayes_log_loss"]) for part in PARTS}
            for part in PARTS:
                self._require_shapes(part)

    def size(self, part: str) -> int:
        """Rows in `part`."""
        return int(self._file[part]["label"].size)

    def bayes_log_loss(self, part: str) -> float:
        """The mean loss over `part`, in nats, that no model can better; nan where nobody knows it."""
        return self._bayes_log_loss[part]

    def read(self, part: str, begin: int, count: int) -> Rows:
        """`count` rows of `part` from `begin`.

        Raises:
            UserError: the bytes on disk do not match their checksum, or an id or a label is out of range.
        """
        group, place = self._file[part], f"{self.path}: rows {begin} to {begin + count} of {part!r}"
        with self._intact(f"rows {begin} to {begin + count} of {part!r}"):
            rows = Rows(*(group[name][begin : begin + count] for name in Rows._fields))
        ids = rows.categorical
        if ((ids < 0) | (ids >= self._cardinalities)).any() or (rows.label > 1).any():
            raise UserError(f"{place} hold an id or a label outside its stated range; prepare the data again")
        return rows

    def _require_shapes(self, part: str) -> None:
        rows = self.size(part)
        expected = [(rows, len(self.fields.dense)), (rows, len(self.fields.categorical)), (rows,)]
        found = [self._file[part][name].shape for name in Rows._fields]
        if found != expected:
            raise ValueError(f"the columns of {part!r} have the shapes {found} instead of {expected}")
