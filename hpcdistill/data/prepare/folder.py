"""Search of folders for files, and a count of what is left out."""

from __future__ import annotations

import logging
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

logger = logging.getLogger(__name__)


NAMED = 3


class PassedOver:
    """Files and folders that are left out of an input: their number for each reason, and the first few names."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first: dict[str, list[str]] = {}

    def add(self, reason: str, path: str | Path) -> None:
        """Count `path` as left out; `reason` describes such files, in the plural."""
        self._counts[reason] += 1
        first = self._first.setdefault(reason, [])
        if len(first) < NAMED:
            first.append(str(path))

    def __bool__(self) -> bool:
        return bool(self._counts)

    def __str__(self) -> str:
        """Return one line, such as "links to folders: 4 (a, b, c, …); binary files: 1 (d)"."""
        return "; ".join(
            f"{reason}: {count:,} ({', '.join(self._first[reason])}{', …' * (count > NAMED)})"
            for reason, count in self._counts.items()
        )

    def warn(self) -> None:
        """Warn of what was left out, if there is anything."""
        if self:
            logger.warning(f"passed over: {self}")


def walk(
    folder: str | Path, passed_over: PassedOver, skip: Callable[[os.DirEntry[str]], bool]
) -> Iterator[os.DirEntry[str]]:
    """Yield the files of a folder at any depth, in the order of their names.

    Links to files are followed. Links to folders are not, as they can form cycles; they are counted in `passed_over`,
    and so are pipes, sockets and devices. Entries without a status, such as dangling links, are yielded like files.

    Args:
        folder: the folder.
        passed_over: count of what is left out.
        skip: function that returns whether to leave out a file or folder; it counts those itself.

    Raises:
        OSError: a folder cannot be read.
    """
    waiting = children(folder)[::-1]
    while waiting:
        entry = waiting.pop()
        if skip(entry):
            continue
        if entry.is_dir(follow_symlinks=False):
            waiting += children(entry.path)[::-1]
            continue
        mode = mode_of(entry)
        if stat.S_ISDIR(mode):
            passed_over.add("links to folders", entry.path)
        elif mode and not stat.S_ISREG(mode):
            passed_over.add("pipes, sockets and devices", entry.path)
        else:
            yield entry


def mode_of(entry: os.DirEntry[str]) -> int:
    """Return the mode of a file, or of the target of a link; 0 if it has no status."""
    try:
        return entry.stat().st_mode
    except OSError:
        return 0


def children(folder: str | Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder, in the order of their names.

    Raises:
        OSError: the folder cannot be read.
    """
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)
