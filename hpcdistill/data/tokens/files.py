"""Files of text, found in folders, each of them once."""

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
"""Equal for two paths that lead to the same file."""


class TextFile(NamedTuple):
    """A file that may hold text."""

    path: Path
    name: str
    """Its path relative to the folder that was searched; the name of a file that was given itself."""


def find_files(
    inputs: Sequence[Path], include: str, exclude: Sequence[str], passed_over: PassedOver
) -> dict[Identity, TextFile]:
    """Find files in the order of the inputs, and in folders in that of their names.

    Of a file with several names the last is taken: caches of data sets keep files under digests, in a folder that comes
    first (.git/annex of DataLad, blobs of Hugging Face), and links to them that tell by their names what they are.

    Args:
        inputs: files, and folders that are searched recursively.
        include: which file names of a folder to take, as a glob.
        exclude: names of files and folders in a folder to leave out, as globs.
        passed_over: where to note what is left out that `include` and `exclude` do not ask for.

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
            raise UserError(f"{error.filename}: {error.strerror}; mend that, or leave it out with --exclude") from None
    return found


def _listed(path: Path, include: str, exclude: Sequence[str], passed_over: PassedOver) -> Iterator[TextFile]:
    def is_excluded(entry: os.DirEntry[str]) -> bool:
        return any(fnmatch(entry.name, pattern) for pattern in exclude)

    mode = path.stat().st_mode
    if stat.S_ISREG(mode):
        yield TextFile(path, path.name)
    elif not stat.S_ISDIR(mode):
        raise UserError(f"{path} is neither a file nor a folder; write what it gives to a file, and give that")
    else:
        for entry in walk(path, passed_over, is_excluded):
            if not fnmatch(entry.name, include):
                continue
            if not mode_of(entry):
                passed_over.add("links that lead nowhere", entry.path)
            elif not os.access(entry.path, os.R_OK):
                passed_over.add("files that you may not read", entry.path)
            else:
                yield TextFile(Path(entry.path), str(Path(entry.path).relative_to(path)))
