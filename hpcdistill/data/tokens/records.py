"""Records of JSON lines and Parquet, in blocks that any process can parse."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hpcdistill.data.prepare.compression import is_compressed
from hpcdistill.data.prepare.lines import count_lines, quote
from hpcdistill.data.tokens import formats
from hpcdistill.data.tokens.formats import JSON_LINES, USUAL_COLUMN, read_file
from hpcdistill.errors import UserError

BLOCK_BYTES = 1 << 20  # approximate size of a block of lines
BLOCK_ROWS = 256  # rows of a block of Parquet
Check = Callable[[bytes], None]
"""Function that raises a `ValueError` for text that is bad."""


class Block(NamedTuple):
    """Consecutive whole records of a file."""

    path: Path
    first: int
    """Number of the first line or row in the file, from 1."""
    size: int
    """Size in bytes of its lines, or of the text in its rows."""
    begin: int = 0
    """Offset of its lines in the file, in bytes."""
    content: bytes | list[bytes | None] | None = None
    """Its lines, if the file is compressed; the text of its rows, for Parquet; None if a process reads it itself."""

    def texts(self, column: str | None, check: Check, bad: Callable[[str], None]) -> Iterator[bytes]:
        """Yield the text of each record.

        Args:
            column: field that has the text; by default `text`.
            check: function that checks the text.
            bad: function that is called for each record without good text, with a line that names its place.

        Raises:
            UserError: a line is too long.
        """
        if isinstance(self.content, list):
            yield from self._texts_of_rows(self.content, check, bad)
        else:
            yield from self._texts_of_lines(self.content, column or USUAL_COLUMN, check, bad)

    def _texts_of_rows(self, rows: list[bytes | None], check: Check, bad: Callable[[str], None]) -> Iterator[bytes]:
        for number, text in enumerate(rows, self.first):
            try:
                if text is None:
                    raise ValueError("no text")
                check(text)
            except ValueError as error:
                bad(f"{self.path.name} row {number}: {error}")
            else:
                yield text

    def _texts_of_lines(
        self, lines: bytes | None, column: str, check: Check, bad: Callable[[str], None]
    ) -> Iterator[bytes]:
        if lines is None:
            with self.path.open("rb") as stream:
                stream.seek(self.begin)
                lines = stream.read(self.size)
        for number, line in enumerate(io.BytesIO(lines), self.first):
            if len(line) >= formats.LINE_BYTES:
                raise UserError(
                    f"{self.path} line {number} has {formats.LINE_BYTES:,} bytes or more; are these JSON lines?"
                )
            if line.isspace():
                continue
            try:
                text = _field(json.loads(line), column)
                check(text)
            except (ValueError, RecursionError) as error:
                bad(quote(self.path, number, error, line))
            else:
                yield text


def read_blocks(path: Path, kind: str, column: str | None) -> Iterator[Block]:
    """Cut a file of records into blocks; memory is that of a block, and at least of a line.

    Args:
        path: the file.
        kind: its format.
        column: field of Parquet that has the text; by default `text`.

    Raises:
        NotTextError: the file is UTF-16.
        UserError: the file cannot be read or is truncated, expands too much, or is Parquet without such a column.
    """
    return _blocks_of_lines(path) if kind == JSON_LINES else _blocks_of_rows(path, column or USUAL_COLUMN)


def _blocks_of_lines(path: Path) -> Iterator[Block]:
    line, begin = 1, 0
    for lines in _whole_lines(path):
        yield Block(path, line, len(lines), begin, lines if is_compressed(path) else None)
        line, begin = line + count_lines(lines), begin + len(lines)


def _whole_lines(path: Path) -> Iterator[bytes]:
    rest = b""
    for piece in read_file(path, lambda stream: stream.read(BLOCK_BYTES)):
        rest += piece
        end = rest.rfind(b"\n") + 1
        if not end and len(rest) >= formats.LINE_BYTES:
            end = len(rest)  # to be refused where it is parsed
        if end:
            yield rest[:end]
            rest = rest[end:]
    if rest:
        yield rest


def _blocks_of_rows(path: Path, column: str) -> Iterator[Block]:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(f"{path} is read with pyarrow; pip install pyarrow") from None
    try:
        with path.open("rb") as stream, ParquetFile(stream) as table:  # pyarrow cannot open names that are not UTF-8
            _require_text(path, table.schema_arrow, column)
            first = 1
            for batch in table.iter_batches(BLOCK_ROWS, columns=[column]):
                rows = batch.column(0).cast(pyarrow.large_binary()).to_pylist()
                yield Block(path, first, sum(len(row or b"") for row in rows), content=rows)
                first += len(rows)
    except (OSError, ValueError, pyarrow.ArrowException) as error:  # ValueError: names of columns are not UTF-8
        raise UserError(f"{path} cannot be read to its end: {error}; download it again") from None


def _field(record: Any, column: str) -> bytes:
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    if column not in record:
        raise ValueError(f"no {column!r} among {', '.join(map(repr, record))}; --column chooses another")
    if not isinstance(record[column], str):
        raise ValueError(f"{column!r} is not text")
    return bytes(record[column].encode())


def _require_text(path: Path, schema: Any, column: str) -> None:
    import pyarrow

    if column not in schema.names:
        names = ", ".join(map(repr, schema.names))
        raise UserError(f"{path} has no column {column!r} among {names}; --column chooses another")
    try:
        pyarrow.array([], schema.field(column).type).cast(pyarrow.large_binary())
    except pyarrow.ArrowException:
        kind = schema.field(column).type
        raise UserError(f"{path}: column {column!r} is of {kind}, not text; --column chooses another") from None
