"""Compressed files, decompressed while they are read."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from hpcdistill.errors import UserError

GZIP, ZSTD = (".gz",), (".zst", ".zstd")


def is_compressed(path: Path) -> bool:
    """Return whether a file is compressed, by its name."""
    return path.suffix.lower() in GZIP + ZSTD


@contextmanager
def open_decompressed(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Open a file whose name may end in .gz or .zst.

    Yields:
        The decompressed content; and the file on disk, whose position shows the progress.

    Raises:
        UserError: the file cannot be read or is truncated, or it needs pyarrow for Zstandard, which is missing.
    """
    try:
        with path.open("rb") as raw:
            yield _decompress(path, raw), raw
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read to its end: {error}; download or compress it again") from None


def _decompress(path: Path, raw: IO[bytes]) -> IO[bytes]:
    if path.suffix.lower() in GZIP:
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw))
    if path.suffix.lower() in ZSTD:
        try:
            import pyarrow
        except ImportError:
            raise UserError(f"{path} is decompressed with pyarrow; pip install pyarrow") from None
        return io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"), 1 << 17)
    return raw
