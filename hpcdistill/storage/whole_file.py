"""Files that are either whole or not there, and that no link leads astray."""

from __future__ import annotations

import errno
import glob
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[FileIO]:
    """Make a file that appears at `path`, complete and on disk, only when the block ends well.

    It grows beside `path` under a hidden name that cannot be guessed, `.NAME.<16 hex digits>`, so that neither a link
    that somebody put there nor another writer is met. A link at `path` itself is replaced; its target stays as it is.

    Yields:
        The empty file, unbuffered, open for reading and writing.

    Raises:
        OSError: as of any write, or there is something else than a file at `path`. It is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, "it exists and is no regular file", str(path))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with FileIO(temporary, "x+") as file:  # exclusively: not through a link either
        try:
            yield file
            os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    _sync(path.parent)


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file at once; see `whole_file`. Text becomes UTF-8; of a file name that is none, the bytes are escaped.

    Raises:
        OSError: what was at `path` before is untouched.
    """
    rest = memoryview(content.encode(errors="backslashreplace") if isinstance(content, str) else content)
    with whole_file(path) as file:
        while rest:
            rest = rest[file.write(rest) :]


def open_to_append(path: Path) -> FileIO:
    """Open a file for appending, unbuffered; it is made where it is missing.

    Raises:
        OSError: also where it is a link.
    """
    return FileIO(path, "a", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o666))


def remove_temporary_files(path: Path) -> None:
    """Remove the temporary files that killed writers of `path` have left. Call only where there is no other writer."""
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 16}"):
        temporary.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
