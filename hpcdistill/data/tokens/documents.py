"""Documents of a file: the whole file for text; the text of each record for JSON lines and Parquet."""

from __future__ import annotations

import codecs
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from hpcdistill.data.prepare.lines import quote
from hpcdistill.data.tokens.files import TextFile
from hpcdistill.data.tokens.formats import TEXT, NotTextError, read_file
from hpcdistill.data.tokens.records import Block, read_blocks
from hpcdistill.errors import UserError

READ_BYTES = 1 << 16


class Document(NamedTuple):
    """Text that is independent of others."""

    key: bytes
    """Bytes whose hash chooses the part: the name of a file, or the text of a record."""
    pieces: Iterable[bytes]
    """Pieces of the text in order, without zero bytes."""


class NotUTF8Error(UserError):
    """File of text in another encoding than UTF-8; the message names the first place."""


def read_documents(
    file: TextFile, kind: str, column: str | None, bad: Callable[[str], None], is_utf8: bool = False
) -> Iterator[Document]:
    """Yield the documents of a file; memory is that of a piece, or of a block of records.

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
        for block in read_blocks(file.path, kind, column):
            yield from documents_of(block, column, bad, is_utf8)


def documents_of(
    block: Block, column: str | None, bad: Callable[[str], None], is_utf8: bool = False
) -> Iterator[Document]:
    """Yield the documents of a block of records; see `read_documents`."""
    check = _require_utf8 if is_utf8 else _require_no_zero
    for text in block.texts(column, check, bad):
        yield Document(text, (text,))


def _pieces(path: Path) -> Iterator[bytes]:
    for piece in read_file(path, lambda stream: stream.read(READ_BYTES)):
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


def _require_no_zero(text: bytes) -> None:
    if b"\0" in text:
        raise ValueError("a zero byte in the text")


def _require_utf8(text: bytes) -> None:
    text.decode()
