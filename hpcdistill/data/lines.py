"""Files of lines, read block by block."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from hpcdistill.errors import UserError

BLOCK_BYTES = 1 << 23
QUOTED_BYTES = 60


class Block(NamedTuple):
    """Some whole lines of a file."""

    file: str
    line: int  # number of the first line in its file, from 1
    row: int  # number of the first line among those of all files, from 0
    text: bytes

    def lines(self) -> list[bytes]:
        r"""Without their ends, \\n or \\r\\n."""
        return [line.removesuffix(b"\r") for line in self.text.removesuffix(b"\n").split(b"\n")]


def read_blocks(paths: Sequence[Path]) -> Iterator[Block]:
    """The lines of files, those whose names end in .gz unpacked; shows how far it is.

    Raises:
        UserError: a file is missing, empty, or not whole.
    """
    row = 0
    with tqdm(desc="reading", total=sum(map(_size, paths)), unit="B", unit_scale=True) as bar:
        for path in paths:
            line = 1
            for text in _texts(path, bar):
                yield Block(str(path), line, row, text)
                count = text.count(b"\n") + (not text.endswith(b"\n"))
                line, row = line + count, row + count
    if not row:
        raise UserError(f"no lines in {', '.join(map(str, paths))}; check --input")


def first_line(path: Path) -> bytes:
    """Without its end.

    Raises:
        UserError: as `read_blocks`.
    """
    start = next(_texts(path, tqdm(disable=True)), b"")
    return start.split(b"\n", 1)[0].removesuffix(b"\r")


def fingerprint(paths: Sequence[Path]) -> list[tuple[str, int, int]]:
    """What changes when the files do, as far as can be told without reading them."""
    return [(str(path.resolve()), _size(path), path.stat().st_mtime_ns) for path in paths]


def _size(path: Path) -> int:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"--input {path}: {error.strerror}") from None
    if not size or not path.is_file():
        raise UserError(f"--input {path} is not a file with lines in it; check --input")
    return size


def _texts(path: Path, bar: Any) -> Iterator[bytes]:
    try:
        with path.open("rb") as raw:
            stream = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
            before = 0
            # What has no line ends is cut somewhere, as it is bad wherever.
            while text := stream.read(BLOCK_BYTES) + stream.readline(BLOCK_BYTES):
                yield text
                bar.update(raw.tell() - before)
                before = raw.tell()
    except (OSError, EOFError) as error:
        raise UserError(f"--input {path} cannot be read to its end: {error}; fetch or pack it again") from None


def quote(file: str, line: int, reason: object, text: bytes) -> str:
    """A bad line, with its place and what is wrong with it."""
    return f"{Path(file).name} line {line}: {reason}: {repr(text[:QUOTED_BYTES])[1:]}{'…' * (len(text) > QUOTED_BYTES)}"
