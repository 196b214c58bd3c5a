"""`hpcdistill prepare table`: a store from CSV or Parquet files that have a label with two values.

Dense columns have mean 0 and standard deviation 1 in the training part; missing values become 0, the mean. Categories
have the id 0 for a missing value, 1 for values that are not in the training part, and then one id each. For the kinds
of columns see `columns.py`. The kinds of columns of text are guessed from the beginning of the first file; all files
are read again if that was wrong.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow

from hpcdistill.data.prepare.bad_records import Bad, count_bad, warn_of_bad
from hpcdistill.data.prepare.lines import fingerprint
from hpcdistill.data.prepare.pieces import Piece, make_pieces, pieces_folder
from hpcdistill.data.rows.column_warnings import column_warnings
from hpcdistill.data.rows.columns import Column, Kind, Seen, kind_of_type, read_categories
from hpcdistill.data.rows.csv_table import CsvTable
from hpcdistill.data.rows.encoding import Encoding, make_piece, read_found
from hpcdistill.data.rows.files import find_files
from hpcdistill.data.rows.join import join_pieces
from hpcdistill.data.rows.label import choose_positive
from hpcdistill.data.rows.parquet_table import ParquetTable
from hpcdistill.errors import UserError, suggestion

logger = logging.getLogger(__name__)

Table = CsvTable | ParquetTable


class ColumnChoices(NamedTuple):
    """Names of the columns for which the user chooses the kind, or which are left out."""

    categorical: Sequence[str] = ()
    dense: Sequence[str] = ()
    drop: Sequence[str] = ()


NO_CHOICES = ColumnChoices()


def prepare_table(
    inputs: Sequence[Path],
    output: Path,
    label: str,
    positive: str | None = None,
    max_bad: int = 0,
    processes: int | None = None,
    choices: ColumnChoices = NO_CHOICES,
) -> None:
    """Write a store of rows from a table; about 5 % of them, evenly spread, become the validation part.

    Args:
        inputs: CSV files, possibly compressed, with commas, semicolons, tabs or bars as delimiters and the names of
            the columns in the first record; or Parquet files; or folders of either. All have the same columns.
        output: HDF5 file to write.
        label: name of the column to predict, which has two values.
        positive: value of the label that is 1; see `label.choose_positive`.
        max_bad: maximum number of bad lines to pass over.
        processes: number of processes; by default one for each core.
        choices: columns that are categorical, dense or left out, whatever their values are.

    Raises:
        UserError: a file cannot be read, there is no such column, the label has not two values, too many lines are bad,
            or there are too few.
    """
    files, is_parquet = find_files(inputs)
    state = fingerprint(files)
    table: Table = ParquetTable(files) if is_parquet else CsvTable(files)
    names = _features(table, label, choices)
    columns = [_column(name, table, choices) for name in names]
    if isinstance(table, CsvTable):
        columns = _guess(table, columns)
    with pieces_folder(output, "table", 2, state, label, choices) as folder:
        paths, bad = _read(table, label, columns, folder, max_bad, processes)
        found = read_found(paths, columns)
        decided = _decide(columns, found.seen)
        if decided != columns:
            columns = decided
            paths, bad = _read(table, label, columns, folder, max_bad, processes)
            found = read_found(paths, columns)
        chosen = choose_positive(label, found.labels, positive)
        encoding = Encoding(columns, found, chosen)
        join_pieces(output, paths, encoding, encoding.fields, ", ".join(map(str, inputs)))
    warn_of_bad(*bad, "lines")
    for message in column_warnings(columns, found):
        logger.warning(message)
    print(f"{label} = {chosen.one!r} is 1, {chosen.zero!r} is 0")
    if chosen.is_guessed:
        logger.warning(
            f"the alphabetical order decides which value of {label!r} is 1; to choose the other: "
            f"--positive={chosen.zero}"
        )


def _features(table: Table, label: str, choices: ColumnChoices) -> list[str]:
    """Return the names of the columns that become features."""
    file, names = table.files[0], [name for name in table.names if name]
    if label not in names:
        known = ", ".join(names[:20])
        raise UserError(f"--label {label!r} is not a column of {file}{suggestion(label, names)}; it has {known}")
    if table.types and pyarrow.types.is_nested(table.types[label]):
        raise UserError(
            f"--label {label!r} of {file} has the type {table.types[label]}; it must be of numbers or words"
        )
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{file} has two columns {twice!r}; rename one of them")
    wished: dict[str, str] = {label: "--label"}
    for option, chosen in zip(("--categorical", "--dense", "--drop"), choices, strict=True):
        for name in chosen:
            if name not in names:
                raise UserError(f"{option} {name!r} is not a column of {file}{suggestion(name, names)}")
            if wished.setdefault(name, option) != option:
                raise UserError(f"{option} {name!r}: that column is in {wished[name]} as well; choose one")
    index = [name for name in table.index if name not in wished]
    if index or len(names) < len(table.names):
        left_out = ", ".join(map(repr, [*index, *[""] * ("" in table.names)]))
        logger.warning(
            f"{file}: left out {left_out}: columns that number the rows, as pandas writes them, or have no name. To "
            "learn from one: --dense or --categorical COLUMN"
        )
    features = [name for name in names if name != label and name not in index and name not in choices.drop]
    if not features:
        raise UserError(f"{file} has no column to learn from besides the label {label!r}; check --input, --drop")
    return features


def _column(name: str, table: Table, choices: ColumnChoices) -> Column:
    typed = kind_of_type(name, table.types[name], table.files[0]) if name in table.types else None
    if name in choices.categorical:
        return Column(name, "categorical", "user")
    if name in choices.dense:
        return Column(name, "dense", "user")
    return Column(name, typed or "dense", "file" if typed else None)


def _guess(table: CsvTable, columns: Sequence[Column]) -> list[Column]:
    """Guess the kinds of columns from the beginning of the first file."""
    chunk = table.sample(columns)
    return _decide(columns, [read_categories(chunk, cells).seen for cells in chunk.columns])


def _decide(columns: Sequence[Column], seen: Sequence[Seen]) -> list[Column]:
    """Return the columns with their kinds, by their values."""

    def kind(column: Column, of: Seen) -> Kind:
        if column.said_by:
            return column.kind
        return "dense" if of.is_of_numbers else "categorical"

    return [column._replace(kind=kind(column, of)) for column, of in zip(columns, seen, strict=True)]


def _read(
    table: Table, label: str, columns: Sequence[Column], folder: Path, max_bad: int, processes: int | None
) -> tuple[list[Path], Bad]:
    """Make the pieces of the table with these columns; return them and the bad lines."""
    pieces = folder / hashlib.blake2b(repr(columns).encode(), digest_size=8).hexdigest()
    pieces.mkdir(exist_ok=True)
    made = make_pieces(pieces, partial(_make, table, label, columns), table.tasks(), processes)
    return count_bad(made, max_bad, "lines")


def _make(table: Any, label: str, columns: Sequence[Column], task: Any) -> Piece:
    return make_piece(columns, table.read(label, columns, task))
