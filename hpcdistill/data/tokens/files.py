"""Search for files of text, each of which is found once."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from hpcdistill.data.prepare.folder import PassedOver, mode_of, walk
from hpcdistill.errors import UserError

Identity = tuple[int, int]
"""Device and inode: equal for two paths of the same file."""


class TextFile(NamedTuple):
    """File that may have text."""

    path: Path
    name: str
    """Path relative to the folder that was searched; for a file given as an input, its name."""


def find_files(
    inputs: Sequence[Path], include: str, exclude: Sequence[str], passed_over: PassedOver
) -> dict[Identity, TextFile]:
    """Find files in the order of the inputs, and in folders in the order of their names.

    Of a file with several names the last one is used: caches of data sets keep files under digests, in a folder that
    comes first (.git/annex of DataLad, blobs of Hugging Face), with links to them whose names have the usual suffixes.

    Args:
        inputs: files, and folders that are searched recursively.
        include: glob of file names in folders to include.
        exclude: globs of file and folder names in folders to leave out.
        passed_over: count of what is left out for other reasons.

    Raises:
        UserError: an input does not exist or is neither a file nor a folder, or a folder cannot be read.
    """
    found: dict[Identity, TextFile] = {}
    for path in inputs:
        try:
            for file in _listed(path, include, exclude, passed_over):
                status = file.path.stat()
                identity = status.st_dev, status.st_ino
                if earlier := found.pop(identity, None):
                    passed_over.add("found again under another name", earlier.path)
                found[identity] = file
        except FileNotFoundError:
            raise UserError(f"{path}: no such file or folder; check --input and --validation") from None
        except OSError as error:
            raise UserError(f"{error.filename}: {error.strerror}; leave it out with --exclude") from None
    return found


def _listed(path: Path, include: str, exclude: Sequence[str], passed_over: PassedOver) -> Iterator[TextFile]:
    def is_excluded(entry: os.DirEntry[str]) -> bool:
        return any(fnmatch(entry.name, pattern) for pattern in exclude)

    mode = path.stat().st_mode
    if stat.S_ISREG(mode):
        yield TextFile(path, path.name)
    elif not stat.S_ISDIR(mode):
        raise UserError(f"{path} is neither a file nor a folder; write its output to a file, and name that file")
    else:
        for entry in walk(path, passed_over, is_excluded):
            if not fnmatch(entry.name, include):
                continue
            if not mode_of(entry):
                passed_over.add("dangling links", entry.path)
            elif not os.access(entry.path, os.R_OK):
                passed_over.add("files that you may not read", entry.path)
            else:
                yield TextFile(Path(entry.path), str(Path(entry.path).relative_to(path)))
