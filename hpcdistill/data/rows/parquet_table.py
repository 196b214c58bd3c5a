"""Tables in Parquet files: the names and types of their columns, and row groups."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow
from pyarrow.parquet import ParquetFile
from tqdm import tqdm

from hpcdistill.data.rows.chunk import Chunk
from hpcdistill.data.rows.columns import Column
from hpcdistill.errors import UserError

TASK_ROWS = 1 << 17
"""Minimum number of rows of a task; smaller row groups are read together."""
Result = TypeVar("Result")


class Groups(NamedTuple):
    """Consecutive row groups of a file."""

    file: Path
    begin: int
    end: int
    first: int
    """Number of the first row in the file, from 0."""
    row: int
    """Number of the first row among the rows of all files, from 0."""


class ParquetTable:
    """Parquet files with the same columns.

    Attributes:
        names: names of all columns.
        types: type of each column, by name.
        index: names of columns that are the index of a pandas frame.

    Raises:
        UserError: a file cannot be read, or has other columns than the first.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files
        schema = _read(files[0], lambda file: file.schema_arrow)
        self.names: list[str] = schema.names
        self.types = dict(zip(schema.names, schema.types, strict=True))
        self.index = _index(schema)
        for file in files[1:]:
            self._join(file, _read(file, lambda opened: opened.schema_arrow))

    def _join(self, file: Path, schema: pyarrow.Schema) -> None:
        types = dict(zip(schema.names, schema.types, strict=True))
        if set(types) != set(self.types):
            raise UserError(
                f"{file} has the columns {', '.join(schema.names)}, and {self.files[0]} {', '.join(self.names)}; files "
                "that are prepared together must have the same ones"
            )
        for name, type_ in types.items():
            if pyarrow.types.is_null(self.types[name]):
                self.types[name] = type_
            elif not pyarrow.types.is_null(type_) and _sort(type_) != _sort(self.types[name]):
                raise UserError(
                    f"column {name!r} has the type {type_} in {file}, and {self.types[name]} in {self.files[0]}; write "
                    f"equal types, or leave it out with --drop {name!r}"
                )

    def tasks(self) -> Iterator[Groups]:
        """Yield the tasks of the files, for `read`; show a progress bar."""
        row = 0
        for file in tqdm(self.files, desc="reading", unit="file", disable=len(self.files) == 1):
            metadata = _read(file, lambda opened: opened.metadata)
            begin = first = 0
            count = metadata.num_row_groups
            for group in tqdm(range(count), desc="reading", unit="group", disable=len(self.files) > 1):
                end = group + 1
                rows = sum(metadata.row_group(number).num_rows for number in range(begin, end))
                if rows >= TASK_ROWS or end == count:
                    yield Groups(file, begin, end, first, row)
                    begin, first, row = end, first + rows, row + rows
        if not row:
            raise UserError(f"no rows in {', '.join(map(str, self.files))}; check --input")

    def read(self, label: str, columns: Sequence[Column], groups: Groups) -> Chunk:
        """Read the label and other columns of some row groups."""
        names = [label, *(column.name for column in columns)]
        texts = [name for name in names if pyarrow.types.is_string(self.types[name])]

        def read(file: ParquetFile) -> pyarrow.Table:
            return file.read_row_groups(range(groups.begin, groups.end), columns=names, use_threads=False)

        table = _read(groups.file, read, read_dictionary=texts)
        numbers = np.arange(table.num_rows)
        return Chunk(
            columns=[_joined(table.column(name)) for name in names],
            numbers=groups.row + numbers,
            file=groups.file,
            lines=groups.first + numbers + 1,
            unit="row",
        )


def _joined(column: pyarrow.ChunkedArray) -> pyarrow.Array:
    if pyarrow.types.is_dictionary(column.type):
        column = column.unify_dictionaries()
    return column.combine_chunks()


def _sort(type_: pyarrow.DataType) -> str:
    """Return a name that is equal for types that may be mixed in a column of several files."""
    types = pyarrow.types
    if types.is_integer(type_) or types.is_floating(type_) or types.is_decimal(type_):
        return "number"
    if types.is_dictionary(type_) or types.is_string(type_) or types.is_large_string(type_):
        return "text"
    return str(type_)


def _index(schema: pyarrow.Schema) -> list[str]:
    """Return the columns that were an index, by the metadata of pandas or its name for an unnamed index."""
    stored: list[Any] = []
    with suppress(ValueError, TypeError, KeyError):  # metadata of another program
        stored = (schema.pandas_metadata or {})["index_columns"]
    return [name for name in schema.names if name in stored or name.startswith("__index_level_")]


def _read(path: Path, read: Callable[[ParquetFile], Result], **options: Any) -> Result:
    try:
        # As bytes: names need not be UTF-8.
        with pyarrow.OSFile(os.fsencode(path)) as raw, ParquetFile(raw, **options) as file:
            return read(file)
    except (OSError, pyarrow.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--input {path} is not a complete Parquet file: {reason}; download it again") from None
