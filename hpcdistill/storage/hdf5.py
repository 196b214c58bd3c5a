"""Atomic writing of HDF5 files, and datasets with checksums."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hpcdistill.storage.whole_file import whole_file

Array = np.ndarray[Any, np.dtype[Any]]
CHUNK_NBYTES = 1 << 20
VERSION = "v110"
"""Version of the file format: the oldest in which all structures that HDF5 writes beside data have checksums."""


@contextmanager
def atomic_file(path: Path, userblock_size: int = 0) -> Iterator[tuple[h5py.File, FileIO]]:
    """Open a new HDF5 file that appears at `path`, complete and on disk, when the block ends without an exception.

    HDF5's own structures in it have checksums; HDF5 1.10 (2016) and later read them.

    Yields:
        The HDF5 file, and the underlying file under its temporary name. A caller that closes the HDF5 file itself may
        then change bytes of the underlying file (its user block) before they are made durable.

    Raises:
        OSError: the file cannot be written; the previous one at `path` is untouched.
    """
    with whole_file(path) as file, _Disk(file.fileno(), "r+", closefd=False) as disk:
        try:
            with h5py.File(disk, "w", libver=(VERSION, VERSION), userblock_size=userblock_size) as hdf5:
                yield hdf5, file
        finally:
            if disk.error:
                raise disk.error


def growing(group: h5py.Group, name: str, dtype: Any, length: int, *shape: int) -> h5py.Dataset:
    """Create an empty, resizable dataset [0, *shape] in chunks of `length` rows with a Fletcher-32 checksum each."""
    return group.create_dataset(
        name,
        (0, *shape),
        dtype,
        chunks=(length, *(max(extent, 1) for extent in shape)),
        maxshape=(None, *(extent or None for extent in shape)),
        fletcher32=True,
        fill_time="never",
    )


def write_checked(group: h5py.Group, name: str, values: Array) -> None:
    """Write an array in chunks of 1 MiB with a Fletcher-32 checksum each; scalars and empty arrays have none."""
    if values.ndim == 0 or values.size == 0:
        group[name] = values
    else:
        length = min(len(values), -(-CHUNK_NBYTES // values[0].nbytes))
        group.create_dataset(name, data=values, chunks=(length, *values.shape[1:]), fletcher32=True)


def text(value: str) -> Array:
    """Return text as a fixed-length UTF-8 value, which HDF5 checksums; variable-length text has no checksum."""
    encoded = value.encode()
    return np.array(encoded, h5py.string_dtype("utf-8", len(encoded) or 1))


class _Disk(FileIO):
    """File for HDF5 to write to, which hides failed writes from it and keeps the first error.

    HDF5 does not recover from a failed write: it cannot close the file any more, raises errors of various types, and
    crashes the process at exit.
    """

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write all of `data`, or keep the error."""
        rest = memoryview(data)
        try:
            while rest and not self.error:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.error = error.with_traceback(None)
        return len(data)

    def truncate(self, size: int | None = None, /) -> int:
        """Resize to `size`, or keep the error."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error.with_traceback(None)
            return size or 0
