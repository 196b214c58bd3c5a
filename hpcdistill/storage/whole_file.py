"""Atomic writing of files, safe against symbolic links."""

from __future__ import annotations

import errno
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[FileIO]:
    """Open a file that appears at `path`, complete and on disk, when the block ends without an exception.

    Until then it has a hidden, random name beside `path`, `.NAME.<16 hex digits>`, which collides neither with another
    writer's nor with a symbolic link put there by someone else. A link at `path` is replaced; its target is untouched.

    Yields:
        The empty file, unbuffered, open for reading and writing.

    Raises:
        OSError: the file cannot be written, or `path` exists and is not a regular file. What is there is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, "it exists and is no regular file", str(path))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with FileIO(temporary, "x+") as file:  # "x" does not follow a link either
        try:
            yield file
            os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    _sync(path.parent)


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file atomically; see `whole_file`.

    Args:
        path: the file; its folder is made.
        content: bytes, or text to encode as UTF-8; surrogates, as in file names that are not UTF-8, are escaped.

    Raises:
        OSError: the file cannot be written; the previous one at `path` is untouched.
    """
    rest = memoryview(content.encode(errors="backslashreplace") if isinstance(content, str) else content)
    with whole_file(path) as file:
        while rest:
            rest = rest[file.write(rest) :]


@contextmanager
def whole_path(path: Path) -> Iterator[Path]:
    """Let the block make a file or a folder, which appears at `path`, complete and on disk, when the block ends.

    Its files get the rights that the umask leaves: some libraries write files that only their owner can read.

    Yields:
        The path to make it at: hidden beside `path`, as for `whole_file`. It is removed if the block raises.

    Raises:
        OSError: it cannot be written, or `path` is a folder with files.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        yield temporary
        os.umask(umask := os.umask(0))
        for made in (temporary, *temporary.rglob("*")):
            if made.is_file():
                made.chmod(0o666 & ~umask)
            _sync(made)
        temporary.rename(path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


def open_to_append(path: Path) -> FileIO:
    """Open a file for appending, unbuffered; make it if it is missing.

    Raises:
        OSError: the file cannot be opened, or is a symbolic link.
    """
    return FileIO(path, "a", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o666))


def remove_temporary_files(path: Path) -> None:
    """Remove the temporary files that killed writers of `path` have left. Call only where there is no other writer."""
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 16}"):
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until a file, or the list of a folder's files, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
