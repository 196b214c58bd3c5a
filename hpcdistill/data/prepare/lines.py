"""Files of lines, split into blocks of whole records that several processes can parse."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from hpcdistill.data.prepare.compression import is_compressed, open_decompressed
from hpcdistill.errors import UserError

BLOCK_BYTES = 1 << 23
"""Approximate size of a block."""
LONGEST = 8
"""Maximum length of a record, in blocks."""
HEAD_BYTES = 1 << 20
QUOTED_BYTES = 60
MARK = b"\xef\xbb\xbf"  # byte order mark with which some programs begin UTF-8

Cut = Callable[[bytes], int]
"""Function that returns the number of bytes at the beginning of a text that are whole records."""


class Block(NamedTuple):
    """Consecutive whole records of a file."""

    file: Path
    line: int
    """Number of the first line in the file, from 1."""
    row: int
    """Number of the first line among the lines of all files, from 0."""
    begin: int = 0
    """Offset in the file, in bytes."""
    size: int = 0
    text: bytes | None = None
    """Content of the block, if the file is compressed and has no random access."""

    def read(self) -> bytes:
        """Return the content, without the byte order mark that a file may begin with."""
        text = self.text
        if text is None:
            with self.file.open("rb") as stream:
                stream.seek(self.begin)
                text = stream.read(self.size)
        return text.removeprefix(MARK) if self.line == 1 else text


def read_blocks(paths: Sequence[Path], cut: Cut) -> Iterator[Block]:
    """Yield the blocks of files, decompressed where names end in .gz or .zst; show a progress bar.

    Args:
        paths: the files.
        cut: function that finds the end of the last whole record.

    Raises:
        UserError: a file is missing, empty or truncated.
    """
    row = 0
    with tqdm(desc="reading", total=sum(map(_size, paths)), unit="B", unit_scale=True) as bar:
        for path in paths:
            line, begin = 1, 0
            for text in _texts(path, cut, bar):
                yield Block(path, line, row, begin, len(text), text if is_compressed(path) else None)
                count = count_lines(text)
                line, row, begin = line + count, row + count, begin + len(text)
    if not row:
        raise UserError(f"no lines in {', '.join(map(str, paths))}; check --input")


def head(path: Path) -> bytes:
    """Return the first `HEAD_BYTES` of a file, without the byte order mark that it may begin with.

    Raises:
        UserError: as `read_blocks`.
    """
    _size(path)
    with open_decompressed(path) as (stream, _):
        return stream.read(HEAD_BYTES).removeprefix(MARK)


def fingerprint(paths: Sequence[Path]) -> list[tuple[str, int, int]]:
    """Return the paths, sizes and modification times of files, which change when the files do."""
    return [(str(path.resolve()), _size(path), path.stat().st_mtime_ns) for path in paths]


def last_line_end(text: bytes) -> int:
    """Return the number of bytes that are whole lines; a `Cut` for files with one record a line."""
    return text.rfind(b"\n") + 1


def count_lines(text: bytes) -> int:
    """Return the number of lines of a text; the last one may lack its line end."""
    ends = np.count_nonzero(np.frombuffer(text, np.uint8) == ord("\n"))  # five times as fast as bytes.count
    return int(ends) + (not text.endswith(b"\n") and text != b"")


def quote(file: Path, line: int, reason: object, text: bytes) -> str:
    """Return a quotation of a bad line, with its place and the reason."""
    text = text.rstrip(b"\r\n")
    return f"{file.name} line {line}: {reason}: {repr(text[:QUOTED_BYTES])[1:]}{'…' * (len(text) > QUOTED_BYTES)}"


def _size(path: Path) -> int:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"--input {path}: {error.strerror}") from None
    if not size or not path.is_file():
        raise UserError(f"--input {path} is not a file with lines in it; check --input")
    return size


def _texts(path: Path, cut: Cut, bar: Any) -> Iterator[bytes]:
    with open_decompressed(path) as (stream, raw):
        rest, before = b"", 0
        while chunk := stream.read(BLOCK_BYTES):
            rest += chunk
            end = cut(rest)
            if not end and len(rest) > LONGEST * BLOCK_BYTES:  # no record begins with this line
                end = rest.find(b"\n") + 1
                if not end:
                    raise UserError(
                        f"--input {path} has a line of more than {len(rest) // 1_000_000} MB; it is not a table"
                    )
            if end:
                yield rest[:end]
            rest = rest[end:]
            bar.update(raw.tell() - before)
            before = raw.tell()
        if rest:
            yield rest
