"""Checks of HDF5 files that HDF5 does not make: all data is there, and all of it is in the file itself.

HDF5 reads a missing chunk as zeros, and follows links to other files. Needs h5py alone: see `look_apart`.
"""

from __future__ import annotations

import hashlib
import math
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

SIGNATURE = b"\x89HDF\r\n\x1a\n"
ERRORS = (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError, MemoryError)
"""Exceptions that h5py raises for damaged files."""

CHECKSUM_NBYTES = 4  # added to each chunk by Fletcher-32
LOOK_SECONDS = 60.0  # importing h5py from a busy filesystem may take most of it


def require_whole(file: h5py.File) -> None:
    """Check that each dataset has all its bytes in this file, and a Fletcher-32 checksum on each chunk.

    Takes 0.1 s for a million chunks.

    Raises:
        ValueError: a dataset is not complete, or there are links other than hard ones, or two to one object.
        OSError: h5py found damage; it may raise any of `ERRORS`.
    """
    for item in _objects(file):
        if isinstance(item, h5py.Dataset):
            _require_whole(item)


def digest(file: h5py.File) -> str:
    """Return a digest of everything in a file that has no checksum of its own.

    These are names, attributes, shapes, dtypes and chunk sizes, and the content of datasets without chunks. The
    attribute `digest` of the root is left out.
    """
    found = hashlib.blake2b(digest_size=16)
    for item in _objects(file):
        facts: list[object] = [item.name]
        if isinstance(item, h5py.Dataset):
            facts += [item.shape, item.dtype.str, item.chunks or np.asarray(item[()]).tolist()]
        for name in sorted(item.attrs):
            if (item.name, name) != ("/", "digest"):
                value = np.asarray(item.attrs[name])
                facts += [name, value.dtype.str, value.tolist()]
        found.update(repr(facts).encode(errors="surrogateescape"))
    return found.hexdigest()


def look_apart(path: Path) -> str:
    """Check, in a separate process, a file whose structure has no checksums; return the problem, or an empty string.

    On a damaged file HDF5 may crash or never return, so the process has a time limit.
    """
    limit = LOOK_SECONDS + path.stat().st_size / 1e9  # even rows, in small chunks, take less
    try:
        command, unlocked = [sys.executable, __file__, str(path)], {**os.environ, "HDF5_USE_FILE_LOCKING": "FALSE"}
        look = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=unlocked)
    except subprocess.TimeoutExpired:
        return f"HDF5 had not read its structure after {limit:.0f} s"
    if look.returncode < 0:
        return f"HDF5 crashes over it, by signal {-look.returncode}"
    return look.stdout.strip() or look.stderr.strip().rpartition("\n")[2]


def _objects(file: h5py.File) -> Iterator[h5py.Group | h5py.Dataset]:
    """Yield all groups and datasets, in the order of their names."""
    waiting = [file["/"]]
    seen = set(waiting)
    while waiting:
        item = waiting.pop()
        yield item
        for name in sorted(item, reverse=True) if isinstance(item, h5py.Group) else ():
            if not isinstance(item.get(name, getlink=True), h5py.HardLink):
                raise ValueError(f"{item.name}: {name} is a link to somewhere else")
            waiting.append(item[name])
            if waiting[-1] in seen or not isinstance(waiting[-1], h5py.Group | h5py.Dataset):
                raise ValueError(f"{item.name}: {name} is no group and no dataset of its own")
            seen.add(waiting[-1])


def _require_whole(data: h5py.Dataset) -> None:
    if data.is_virtual or data.external:
        raise ValueError(f"the content of {data.name} is in other files")
    if data.dtype.kind == "O" and data.shape == ():
        return  # one string, stored elsewhere in the file
    if data.chunks is None:
        nbytes = data.size * data.dtype.itemsize
    else:
        properties = data.id.get_create_plist()
        if [properties.get_filter(i)[0] for i in range(properties.get_nfilters())] != [h5py.h5z.FILTER_FLETCHER32]:
            raise ValueError(f"the chunks of {data.name} are compressed, or have no checksums")
        expected = _chunk_count(data)
        nbytes = expected * _chunk_nbytes(data)
        if data.id.get_num_chunks() != expected:
            raise ValueError(f"{data.name} has {data.id.get_num_chunks()} chunks instead of {expected}")
    if data.id.get_storage_size() != nbytes:
        raise ValueError(f"{data.name} has {data.id.get_storage_size()} bytes instead of {nbytes}")


def _require_each_chunk(data: h5py.Dataset) -> None:
    """Check that the index of chunks, which has no checksum in old files, has each chunk once, at its own place."""
    chunks: list[h5py.h5d.StoreInfo] = []
    data.id.chunk_iter(chunks.append)
    count, nbytes = _chunk_count(data), _chunk_nbytes(data)
    inside = {chunk.chunk_offset for chunk in chunks if np.all(np.array(chunk.chunk_offset) < data.shape)}
    places = {chunk.byte_offset for chunk in chunks}
    if len(inside) != count or len(places) != count or {(c.size, c.filter_mask) for c in chunks} - {(nbytes, 0)}:
        raise ValueError(f"the index of the chunks of {data.name} is damaged")


def _chunk_count(data: h5py.Dataset) -> int:
    return math.prod(-(-extent // chunk) for extent, chunk in zip(data.shape, data.chunks, strict=True))


def _chunk_nbytes(data: h5py.Dataset) -> int:
    return int(math.prod(data.chunks) * data.dtype.itemsize) + CHECKSUM_NBYTES


def _look(path: str) -> None:
    with h5py.File(path, "r", locking=False) as file:
        require_whole(file)
        digest(file)  # reads all attributes
        for item in _objects(file):
            if isinstance(item, h5py.Dataset) and item.chunks:
                _require_each_chunk(item)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        _look(sys.argv[1])
    except ERRORS as error:
        print(error)
