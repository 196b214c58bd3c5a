"""HDF5 files that are either whole or not there."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py


@contextmanager
def atomic_file(path: Path, userblock_size: int = 0) -> Iterator[tuple[h5py.File, Path]]:
    """Write a new HDF5 file that appears at `path`, complete and on disk, only when the block ends well.

    Yields:
        The open file, and the temporary path under which it grows. When the caller closes the file itself it
        may change the bytes there (the user block) before they are made durable.

    Raises:
        OSError: as of any write; what was at `path` before is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with _Disk(temporary, "w+") as disk:
            try:
                with h5py.File(disk, "w", userblock_size=userblock_size) as file:
                    yield file, temporary
            finally:
                if disk.error:
                    raise disk.error
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


class _Disk(io.FileIO):
    """A file for HDF5 to write to, which keeps it from seeing that the disk takes no more.

    HDF5 does not recover from a write that failed: it cannot close the file any more, raises whatever type of error it
    finds, and crashes the process when that ends. So it is told that all is well, and the error is kept.
    """

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        """All of `data`, or keep the error."""
        rest = memoryview(data)
        try:
            while rest and not self.error:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.error = error.with_traceback(None)
        return len(data)

    def truncate(self, size: int | None = None, /) -> int:
        """To `size`, or keep the error."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error.with_traceback(None)
            return size or 0


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
