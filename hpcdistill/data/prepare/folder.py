"""Folders searched for files, and an account of what was left out of them."""

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
    """An account of what is left out of an input: how many things for each reason, and the first of them by name."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first: dict[str, list[str]] = {}

    def add(self, reason: str, path: str | Path) -> None:
        """Note that what lies at `path` is left out; `reason` is what such things are, in the plural."""
        self._counts[reason] += 1
        first = self._first.setdefault(reason, [])
        if len(first) < NAMED:
            first.append(str(path))

    def __bool__(self) -> bool:
        return bool(self._counts)

    def __str__(self) -> str:
        """Everything in one line, as "links to folders: 4 (a, b, c, …); binary files: 1 (d)"."""
        return "; ".join(
            f"{reason}: {count:,} ({', '.join(self._first[reason])}{', …' * (count > NAMED)})"
            for reason, count in self._counts.items()
        )

    def tell(self) -> None:
        """Warn of what was left out, if anything was."""
        if self:
            logger.warning(f"passed over: {self}")


def walk(
    folder: str | Path, passed_over: PassedOver, skip: Callable[[os.DirEntry[str]], bool]
) -> Iterator[os.DirEntry[str]]:
    """Find the files of a folder at any depth, in the order of their names.

    Links to files are followed. Links to folders are not, as they can lead in circles; they are noted, and so are
    pipes, sockets and devices. What cannot be looked at, as a link that leads nowhere, is found like a file.

    Args:
        folder: where to search.
        passed_over: where to note what is left out.
        skip: tells of each file and folder whether to leave it out; what is to be told of those, it notes itself.

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
    """Return the mode of a file, or of what a link leads to; 0 where that cannot be told."""
    try:
        return entry.stat().st_mode
    except OSError:
        return 0


def children(folder: str | Path) -> list[os.DirEntry[str]]:
    """Return what is in a folder, in the order of the names.

    Raises:
        OSError: it cannot be read.
    """
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)
