"""HDF5 store of rows: features with a label of 0 or 1, and a checksum on each chunk.

/                           attributes: format, version, source, identity, fields
/train                      attribute bayes_log_loss, NaN if unknown
/train/dense                float32 [rows, D], Fletcher-32 checksum on each chunk
/train/categorical          int32 [rows, C]
/train/label                uint8 [rows]
/validation                 the same

`fields` is JSON: {"dense": [names], "categorical": {name: cardinality}}. The ids of each categorical field begin at 0,
so that a model can have one table for each field, or one for all fields by adding offsets.
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
    """Columns of some rows."""

    dense: Array  # float32 [rows, D]
    categorical: Array  # int32 [rows, C]
    label: Array  # uint8 [rows]

    def at(self, index: Any) -> Rows:
        """Return the rows that a slice, a mask or a list of numbers selects."""
        return Rows(self.dense[index], self.categorical[index], self.label[index])


@dataclass(frozen=True)
class Fields:
    """Names of the columns."""

    dense: list[str]
    """Names of the dense fields."""
    categorical: dict[str, int]
    """Cardinality of each categorical field, by name: ids are in [0, cardinality)."""


def write_rows(
    path: Path,
    pieces: Iterable[tuple[str, Rows]],
    fields: Fields,
    source: str,
    bayes_log_loss: Mapping[str, float] | None = None,
) -> dict[str, int]:
    """Write a store from (part, rows) pieces, in order; memory stays bounded by the largest piece.

    Args:
        path: file to write; replaced only when all pieces are written.
        pieces: each a part, one of `PARTS`, with the rows to append to it.
        fields: names of the columns.
        source: origin of the rows, for reports.
        bayes_log_loss: least possible expected loss of each part, in nats, if known.

    Returns:
        The number of rows of each part.
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
    """Part of a store that is being written."""

    def __init__(self, group: h5py.Group, fields: Fields) -> None:
        self.group = group
        self.rows = 0
        self._columns = [
            growing(group, "dense", np.float32, CHUNK_ROWS, len(fields.dense)),
            growing(group, "categorical", np.int32, CHUNK_ROWS, len(fields.categorical)),
            growing(group, "label", np.uint8, CHUNK_ROWS),
        ]
        self.digests = [hashlib.blake2b() for _ in self._columns]  # whatever the sizes of pieces

    def append(self, rows: Rows, hashing: ThreadPoolExecutor) -> None:
        """Append rows, while a thread of `hashing` updates the digests."""
        begin, self.rows = self.rows, self.rows + len(rows.label)
        for column, digest, given in zip(self._columns, self.digests, rows, strict=True):
            values = np.ascontiguousarray(given, column.dtype)
            hashed = hashing.submit(digest.update, values.data)
            column.resize(self.rows, axis=0)
            column[begin:] = values
            hashed.result()


class RowStore(StoreFile):
    """Store of rows that is open for reading; see `StoreFile`.

    Attributes:
        fields: names of the columns.
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
        """Return the number of rows in `part`."""
        return int(self._dataset(f"{part}/label").size)

    def bayes_log_loss(self, part: str) -> float:
        """Return the least possible expected loss of `part`, in nats; NaN if unknown."""
        return self._bayes_log_loss[part]

    def read(self, part: str, begin: int, count: int) -> Rows:
        """Return `count` rows of `part` from `begin`.

        Raises:
            UserError: the bytes on disk do not match their checksum, or an id or a label is out of range.
        """
        place = f"{self.path}: rows {begin} to {begin + count} of {part!r}"
        with self._intact(f"rows {begin} to {begin + count} of {part!r}"):
            rows = Rows(*(self._dataset(f"{part}/{name}")[begin : begin + count] for name in Rows._fields))
        ids = rows.categorical
        if ((ids < 0) | (ids >= self._cardinalities)).any() or (rows.label > 1).any():
            raise UserError(f"{place} hold an id or a label outside its stated range; prepare the data again")
        return rows

    def _require_shapes(self, part: str) -> None:
        rows = self.size(part)
        expected = [(rows, len(self.fields.dense)), (rows, len(self.fields.categorical)), (rows,)]
        found = [self._dataset(f"{part}/{name}").shape for name in Rows._fields]
        if found != expected:
            raise ValueError(f"the columns of {part!r} have the shapes {found} instead of {expected}")
