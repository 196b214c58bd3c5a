"""HDF5 files that are either whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
        with h5py.File(temporary, "w", userblock_size=userblock_size) as file:
            yield file, temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
