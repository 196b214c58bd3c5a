"""Documents of a file: the whole file for text; the text of each record for JSON lines and Parquet."""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

from hpcdistill.data.prepare.compression import is_compressed, open_decompressed
from hpcdistill.data.prepare.lines import quote
from hpcdistill.data.tokens.files import TextFile
from hpcdistill.errors import UserError

TEXT, JSON_LINES, PARQUET = "text", "JSON lines", "Parquet"
USUAL_COLUMN = "text"
READ_BYTES = 1 << 16
LINE_BYTES = 1 << 26  # maximum length of a line of JSON
BATCH_ROWS = 256  # rows of Parquet in memory at a time
MOST_UNPACKED = 1000  # largest ratio of decompressed to compressed size; that of text is 3 to 50
UNPACKED_BYTES = 1 << 30  # up to this size, any ratio is accepted
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
Check = Callable[[bytes], None]
"""Function that raises a `ValueError` for text that is bad."""


class Document(NamedTuple):
    """Text that is independent of others."""

    key: bytes
    """Bytes whose hash chooses the part: the name of a file, or the text of a record."""
    pieces: Iterable[bytes]
    """Pieces of the text in order, without zero bytes."""


class NotTextError(UserError):
    """File without text; `reason` describes such files, in the plural."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} is one of these: {reason}")
        self.reason = reason


class NotUTF8Error(UserError):
    """File of text in another encoding than UTF-8; the message names the first place."""


def kind_of(path: Path, column: str | None) -> str:
    """Return the format of a file, by its name: `PARQUET`, `JSON_LINES` or `TEXT`.

    Files called .json are JSON lines if the first two lines are objects, or the only one is an object with the column.

    Raises:
        UserError: see `read_documents`; only for .json files, which are read.
    """
    suffix = (Path(path.stem) if is_compressed(path) else path).suffix.lower()
    if suffix in (".parquet", ".pq") and not is_compressed(path):
        return PARQUET
    if suffix in (".jsonl", ".ndjson") or (suffix == ".json" and _begins_with_records(path, column or USUAL_COLUMN)):
        return JSON_LINES
    return TEXT


def read_documents(
    file: TextFile, kind: str, column: str | None, bad: Callable[[str], None], is_utf8: bool = False
) -> Iterator[Document]:
    """Yield the documents of a file; memory is that of a piece, a line of JSON, or a few rows of Parquet.

    Args:
        file: the file.
        kind: format of the file; see `kind_of`.
        column: field of the records that has the text; by default `text`.
        bad: function that is called for each record without text, with a line that names its place and the error.
        is_utf8: require that the text is UTF-8; each piece then consists of whole characters, and records may have zero
            bytes.

    Raises:
        NotTextError: the file is binary or UTF-16.
        NotUTF8Error: a file of text is not UTF-8, although `is_utf8` requires it.
        UserError: the file cannot be read or is truncated, expands too much, or is Parquet without such a column.
    """
    if kind == TEXT:
        pieces = _pieces(file.path)
        yield Document(os.fsencode(file.name), _whole_characters(file.path, pieces) if is_utf8 else pieces)
    else:
        read = _json_lines if kind == JSON_LINES else _parquet
        check = _require_utf8 if is_utf8 else _require_no_zero
        for text in read(file.path, column or USUAL_COLUMN, check, bad):
            yield Document(text, (text,))


def _pieces(path: Path) -> Iterator[bytes]:
    for piece in _read(path, lambda stream: stream.read(READ_BYTES)):
        if b"\0" in piece:
            raise NotTextError(path, "binary files")
        yield piece


def _whole_characters(path: Path, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the text of UTF-8 pieces in pieces that end where a character ends."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    line = 1
    try:
        for piece in pieces:
            text = decoder.decode(piece).encode()
            yield text
            line += text.count(b"\n")
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        before = error.object[: error.start]
        begin = before.rfind(b"\n") + 1
        reason = "not UTF-8 (to convert a file of Latin-1: `iconv -f LATIN1 -t UTF-8 FILE`)"
        raise NotUTF8Error(
            quote(path, line + before.count(b"\n"), reason, error.object[max(begin, error.start - 20) :])
        ) from None


def _read(path: Path, unit: Callable[[IO[bytes]], bytes]) -> Iterator[bytes]:
    """Yield what `unit` reads from a file, decompressed, until its end."""
    size = 0
    with open_decompressed(path) as (stream, raw):
        while data := unit(stream):
            if not size and data.startswith(UTF_16):
                raise NotTextError(path, "UTF-16 files, which `iconv -f UTF-16 -t UTF-8` converts to text")
            size += len(data)
            if size > UNPACKED_BYTES and size > MOST_UNPACKED * raw.tell():
                raise UserError(
                    f"{path} expands to more than {MOST_UNPACKED} times its size, unlike text; leave it out "
                    "with --exclude, or decompress it yourself"
                )
            yield data


def _lines(path: Path) -> Iterator[bytes]:
    return _read(path, lambda stream: stream.readline(LINE_BYTES))


def _begins_with_records(path: Path, column: str) -> bool:
    try:
        first, *second = [json.loads(line) for line in islice(filter(bytes.strip, _lines(path)), 2)]
    except (ValueError, RecursionError):
        return False
    return all(isinstance(record, dict) for record in (first, *second)) and (bool(second) or column in first)


def _json_lines(path: Path, column: str, check: Check, bad: Callable[[str], None]) -> Iterator[bytes]:
    for number, line in enumerate(_lines(path), 1):
        if len(line) == LINE_BYTES:
            raise UserError(f"{path} line {number} has {LINE_BYTES:,} bytes or more; are these JSON lines?")
        if line.isspace():
            continue
        try:
            text = _field(json.loads(line), column)
            check(text)
        except (ValueError, RecursionError) as error:
            bad(quote(path, number, error, line))
        else:
            yield text


def _field(record: Any, column: str) -> bytes:
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    if column not in record:
        raise ValueError(f"no {column!r} among {', '.join(map(repr, record))}; --column chooses another")
    if not isinstance(record[column], str):
        raise ValueError(f"{column!r} is not text")
    return bytes(record[column].encode())


def _require_no_zero(text: bytes) -> None:
    if b"\0" in text:
        raise ValueError("a zero byte in the text")


def _require_utf8(text: bytes) -> None:
    text.decode()


def _parquet(path: Path, column: str, check: Check, bad: Callable[[str], None]) -> Iterator[bytes]:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise UserError(f"{path} is read with pyarrow; pip install pyarrow") from None
    try:
        with path.open("rb") as stream, ParquetFile(stream) as table:  # pyarrow cannot open names that are not UTF-8
            _require_text(path, table.schema_arrow, column)
            batches = table.iter_batches(BATCH_ROWS, columns=[column])
            texts = (text for batch in batches for text in batch.column(0).cast(pyarrow.large_binary()).to_pylist())
            for row, text in enumerate(texts, 1):
                try:
                    if text is None:
                        raise ValueError("no text")
                    check(text)
                except ValueError as error:
                    bad(f"{path.name} row {row}: {error}")
                else:
                    yield text
    except (OSError, ValueError, pyarrow.ArrowException) as error:  # ValueError: names of columns are not UTF-8
        raise UserError(f"{path} cannot be read to its end: {error}; download it again") from None


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
