"""`hpcdistill prepare table`: a CSV or Parquet file with a label of two values.

A column is dense when each of its values is a number, and categorical otherwise. Dense columns get mean 0 and
deviation 1 in the training part, and 0, the mean, where a value is missing. Categories have the ids 0 for a missing
value, 1 for one that the training part does not have, and then one each. Empty cells, `NA`, `NaN`, `nan` and `null` are
missing.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from hpcdistill.data.bad import bad_ones, collect
from hpcdistill.data.hashing import in_validation
from hpcdistill.data.lines import Block, fingerprint, first_line, quote, read_blocks
from hpcdistill.data.pieces import Piece, join_pieces, make_pieces, pieces_folder, read_piece
from hpcdistill.data.rows import Array, Fields, Rows
from hpcdistill.data.vocabulary import Vocabulary, count_training
from hpcdistill.errors import UserError, suggestion

MISSING_WORDS = frozenset(["", "NA", "NaN", "nan", "null"])
MISSING = -1
LARGEST = 1e100  # of numbers; their squares are numbers as well
NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,2})?", re.ASCII)

Result = TypeVar("Result")


class Columns(NamedTuple):
    """Those of a table, the label's among them."""

    names: list[str]
    label: int


def prepare_table(
    table: Path,
    output: Path,
    label: str,
    positive: str | None = None,
    max_bad: int = 0,
    processes: int | None = None,
) -> None:
    """Turn a table into a store of rows; about 5 % of them, evenly spread, become the validation part.

    Args:
        table: a file whose name ends in .parquet, read row group by row group; or else lines of comma-separated
            values, of which the first has the names. A value may be quoted, but not go over several lines.
        output: the HDF5 file to make.
        label: the column to be predicted, which has two values.
        positive: which of the values is 1; by default the last one in alphabetical order, as 1 of 0 and 1.
        max_bad: bad lines to pass over.
        processes: how many; by default one for each core.

    Raises:
        UserError: the file cannot be read, the label is not as it should be, too many lines are bad or too few there.
    """
    files = fingerprint([table])
    is_parquet = table.suffix == ".parquet"
    columns = _columns(table, _parquet_names(table) if is_parquet else _csv_names(table), label)
    with pieces_folder(output, "table", 1, files, label) as folder:
        if is_parquet:
            made = make_pieces(folder, partial(_parse_group, table, columns), _groups(table), processes)
        else:
            made = make_pieces(folder, partial(parse_lines, columns), read_blocks([table]), processes)
        paths = collect(made, max_bad, "lines")
        encoding = _Encoding(paths, _positive(paths, label, positive))
        names = [name for name in columns.names if name != label]
        join_pieces(output, paths, encoding, encoding.fields(names), str(table))


def _columns(table: Path, names: list[str], label: str) -> Columns:
    if label not in names:
        known = ", ".join(names[:20])
        raise UserError(f"--label {label!r} is no column of {table}{suggestion(label, names)}; it has {known}")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{table} has two columns {twice!r}; rename one of them")
    return Columns(names, names.index(label))


# What is read


def _csv_names(table: Path) -> list[str]:
    line = first_line(table).removeprefix(b"\xef\xbb\xbf")  # with which some programs begin UTF-8
    try:
        return _cells(line)
    except (ValueError, csv.Error) as error:
        raise UserError(f"{table} line 1 should have the names of the columns: {error}; check --input") from None


def parse_lines(columns: Columns, block: Block) -> Piece:
    """The piece of some lines of a CSV file."""
    rows, bad = {}, []
    for number, line in enumerate(block.lines()):
        if block.line + number > 1:  # that one has the names
            try:
                rows[block.row + number] = _check(columns, _cells(line))
            except (ValueError, csv.Error) as error:
                bad.append(quote(block.file, block.line + number, error, line))
    return _piece(columns, rows) | bad_ones(bad)


def _cells(line: bytes) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line.decode()], skipinitialspace=True, strict=True), [])]


def _check(columns: Columns, cells: list[str]) -> list[str]:
    if len(cells) != len(columns.names):
        raise ValueError(f"{len(cells)} columns instead of {len(columns.names)}")
    if cells[columns.label] in MISSING_WORDS:
        raise ValueError("no label")
    return cells


def _read_parquet(table: Path, read: Callable[[Any], Result]) -> Result:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(f"{table}: Parquet files are read with pyarrow; pip install pyarrow, or give a CSV") from None
    try:
        with ParquetFile(table) as file:
            return read(file)
    except (OSError, ValueError) as error:
        raise UserError(f"--input {table} is not a whole Parquet file: {error}; fetch it again") from None


def _parquet_names(table: Path) -> list[str]:
    return _read_parquet(table, lambda file: list(file.schema_arrow.names))


def _groups(table: Path) -> Iterator[tuple[int, int]]:
    """Number and first row of each row group."""
    metadata = _read_parquet(table, lambda file: file.metadata)
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    return zip(tqdm(range(len(sizes)), desc="reading", unit="group"), accumulate(sizes, initial=0), strict=False)


def _parse_group(table: Path, columns: Columns, group: tuple[int, int]) -> Piece:
    number, first = group
    data = _read_parquet(table, lambda file: file.read_row_group(number, use_threads=False))
    cells = [["" if value is None else str(value).strip() for value in column.to_pylist()] for column in data.columns]
    rows, bad = {}, []
    for row, values in enumerate(map(list, zip(*cells, strict=True)), first):
        try:
            rows[row] = _check(columns, values)
        except ValueError as error:
            bad.append(quote(str(table), row + 1, error, ",".join(values).encode()))
    return _piece(columns, rows) | bad_ones(bad)


def _piece(columns: Columns, rows: dict[int, list[str]]) -> Piece:
    """The piece of rows by their number: each column as numbers and as categories, as nobody knows yet which it is.

    numbers: float64 [rows, columns without the label], nan where it is none; hashes: int64, the same shape; numeric:
    bool [columns], all are numbers; label: int64 [rows], hashes; labels: its values, no more than three.
    """
    cells = list(zip(*rows.values(), strict=True)) or [()] * len(columns.names)
    label = cells.pop(columns.label)
    numbers = [_by_value(column, _number) for column in cells]
    hashes = [_by_value(column, _hash) for column in cells]
    return {
        "numbers": _side_by_side(numbers, len(rows), np.float64),
        "hashes": _side_by_side(hashes, len(rows), np.int64),
        "numeric": np.array(
            [((h == MISSING) | ~np.isnan(n)).all() for n, h in zip(numbers, hashes, strict=True)], bool
        ),
        "label": _by_value(label, _hash),
        "labels": np.array([value.encode() for value in sorted(set(label))[:3]], "S"),
        "validation": in_validation(np.array(list(rows), np.int64)),
    }


def _by_value(cells: Sequence[str], function: Callable[[str], float | int]) -> Array:
    known = {cell: function(cell) for cell in set(cells)}
    return np.array([known[cell] for cell in cells])


def _side_by_side(columns: list[Array], rows: int, dtype: type) -> Array:
    return np.array(columns, dtype).reshape(len(columns), rows).T


def _number(cell: str) -> float:
    value = float(cell) if NUMBER.fullmatch(cell) else np.nan
    return value if abs(value) < LARGEST else np.nan


def _hash(cell: str) -> int:
    if cell in MISSING_WORDS:
        return MISSING
    return int.from_bytes(hashlib.blake2b(cell.encode(), digest_size=8).digest(), "big") >> 1


# What becomes of it


def _positive(paths: list[Path], label: str, positive: str | None) -> int:
    """The hash of the label's value that is 1."""
    values = sorted({value.decode() for path in paths for value in read_piece(path, "labels")[0]})
    if len(values) != 2:
        found = ", ".join(map(repr, values[:3])) or "none"
        raise UserError(f"--label {label!r} must have two values, and it has {found}{', …' * (len(values) > 3)}")
    if positive is None:
        positive = values[1]
    if positive not in values:
        raise UserError(
            f"--positive {positive!r} is no value of {label!r}; its values are {values[0]!r}, {values[1]!r}"
        )
    print(f"{label} = {positive!r} is 1, all else 0")
    return _hash(positive)


class _Encoding:
    """Tells from all pieces which columns are what, and makes rows of a piece."""

    def __init__(self, paths: list[Path], positive: int) -> None:
        self._positive = positive
        numeric = np.all([read_piece(path, "numeric")[0] for path in paths], axis=0)
        self._dense, self._categorical = np.flatnonzero(numeric), np.flatnonzero(~numeric)
        self._mean = _training_mean(paths, self._dense, lambda numbers: numbers)
        self._deviation = np.sqrt(_training_mean(paths, self._dense, lambda numbers: (numbers - self._mean) ** 2))
        self._ids = Vocabulary(count_training(paths, "hashes", self._categorical.tolist()), 1)

    def fields(self, names: list[str]) -> Fields:
        """Of columns with these names."""
        categorical = [names[column] for column in self._categorical]
        cardinalities = dict(zip(categorical, self._ids.cardinalities, strict=True))
        return Fields([names[column] for column in self._dense], cardinalities)

    def __call__(self, path: Path) -> Rows:
        numbers, hashes, label = read_piece(path, "numbers", "hashes", "label")
        # A column that never changes has deviation 0, and tells nothing.
        dense = (numbers[:, self._dense] - self._mean) / np.where(self._deviation, self._deviation, 1)
        ids = self._ids(hashes[:, self._categorical])
        return Rows(np.nan_to_num(dense).astype(np.float32), ids, (label == self._positive).astype(np.uint8))


def _training_mean(paths: list[Path], columns: Array, function: Callable[[Array], Array]) -> Array:
    """The mean of a function of each column's numbers, [columns]; 0 for a column without."""
    total, count = np.zeros(len(columns)), np.zeros(len(columns))
    for path in paths:
        numbers, validation = read_piece(path, "numbers", "validation")
        values = function(numbers[~validation][:, columns])
        total += np.nansum(values, axis=0)
        count += (~np.isnan(values)).sum(axis=0)
    mean: Array = total / np.maximum(count, 1)
    return mean
