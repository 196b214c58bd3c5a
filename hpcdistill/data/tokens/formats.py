"""Formats of files with text, and reading of their bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO

from hpcdistill.data.prepare.compression import is_compressed, open_decompressed
from hpcdistill.errors import UserError

TEXT, JSON_LINES, PARQUET = "text", "JSON lines", "Parquet"
USUAL_COLUMN = "text"
LINE_BYTES = 1 << 26  # maximum length of a line of JSON
MOST_UNPACKED = 1000  # largest ratio of decompressed to compressed size; that of text is 3 to 50
UNPACKED_BYTES = 1 << 30  # up to this size, any ratio is accepted
UTF_16 = (b"\xff\xfe", b"\xfe\xff")


class NotTextError(UserError):
    """File without text; `reason` describes such files, in the plural."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} is one of these: {reason}")
        self.reason = reason


def kind_of(path: Path, column: str | None) -> str:
    """Return the format of a file, by its name: `PARQUET`, `JSON_LINES` or `TEXT`.

    Files called .json are JSON lines if the first two lines are objects, or the only one is an object with the column.

    Raises:
        UserError: see `read_file`; only for .json files, which are read.
    """
    suffix = (Path(path.stem) if is_compressed(path) else path).suffix.lower()
    if suffix in (".parquet", ".pq") and not is_compressed(path):
        return PARQUET
    if suffix in (".jsonl", ".ndjson") or (suffix == ".json" and _begins_with_records(path, column or USUAL_COLUMN)):
        return JSON_LINES
    return TEXT


def read_file(path: Path, unit: Callable[[IO[bytes]], bytes]) -> Iterator[bytes]:
    """Yield what `unit` reads from a file, decompressed, until its end.

    Raises:
        NotTextError: the file is UTF-16.
        UserError: the file cannot be read or is truncated, or expands too much.
    """
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


def _begins_with_records(path: Path, column: str) -> bool:
    lines = read_file(path, lambda stream: stream.readline(LINE_BYTES))
    try:
        first, *second = [json.loads(line) for line in islice(filter(bytes.strip, lines), 2)]
    except (ValueError, RecursionError):
        return False
    return all(isinstance(record, dict) for record in (first, *second)) and (bool(second) or column in first)
