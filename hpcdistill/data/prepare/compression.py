"""Packed files, unpacked while they are read."""

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
    """Tell by its name whether a file is packed."""
    return path.suffix.lower() in GZIP + ZSTD


@contextmanager
def open_decompressed(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Open a file whose name may end in .gz or .zst.

    Yields:
        Its content, unpacked; and the file as it is on disk, whose position tells how far reading is.

    Raises:
        UserError: it cannot be read, is not whole, or Zstandard needs pyarrow and there is none.
    """
    try:
        with path.open("rb") as raw:
            yield _unpacking(path, raw), raw
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read to its end: {error}; fetch or pack it again") from None


def _unpacking(path: Path, raw: IO[bytes]) -> IO[bytes]:
    if path.suffix.lower() in GZIP:
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw))
    if path.suffix.lower() in ZSTD:
        try:
            import pyarrow
        except ImportError:
            raise UserError(f"{path} is unpacked with pyarrow; pip install pyarrow") from None
        return io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"), 1 << 17)
    return raw
