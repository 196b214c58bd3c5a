"""Check that all ranks see the files that are written into the folder of a run."""

from __future__ import annotations

import time
import uuid
from functools import partial
from pathlib import Path
from typing import Any

from mpi4py import MPI

from hpcdistill.doctor.ask_all import Answer, ask_all, have_failed, slowest, summarize
from hpcdistill.doctor.check import Check, Result
from hpcdistill.errors import UserError
from hpcdistill.storage.whole_file import write_whole

FILES = 3
VISIBLE_SECONDS = 75.0  # NFS may cache for 60 s, by default, that a file does not exist
POLL_SECONDS = 0.02
REMEDY = "give run_dir, and here --folder, a place where you may write and that all nodes share"


def check_folder(folder: Path) -> Result:
    """Check that all ranks see the files that rank 0 writes, and how soon. Collective over the world."""
    seen: list[Answer[Any]] = []
    for _ in range(FILES):
        answers = _write_and_see(folder)
        seen += answers
        if have_failed(answers):
            break
    ranks = MPI.COMM_WORLD.size
    found = f"{folder.resolve()}, rank 0's files seen by {ranks} rank(s): {slowest(seen)}"
    return summarize(answers, found, REMEDY)


def check_of(folder: Path) -> Check:
    """Return the check of this folder."""
    return ("shared folder", partial(check_folder, folder), REMEDY)


def _write_and_see(folder: Path) -> list[Answer[Any]]:
    """Have rank 0 write a file and remove it; return the seconds until each rank saw it, once it was written."""
    path = folder / MPI.COMM_WORLD.bcast(f".doctor-{uuid.uuid4().hex}")
    # Before the file exists, so that the time includes how long caches still report that it does not.
    absent = ask_all(lambda: _sees(path))
    if have_failed(absent):
        return absent
    try:
        written = ask_all(lambda: _write(path))
        return written if have_failed(written) else ask_all(lambda: _seconds_until_seen(path))
    finally:
        if MPI.COMM_WORLD.rank == 0:
            path.unlink(missing_ok=True)


def _write(path: Path) -> None:
    if MPI.COMM_WORLD.rank == 0:
        write_whole(path, _content(path))


def _seconds_until_seen(path: Path) -> float:
    begin = time.monotonic()
    while not _sees(path):
        if time.monotonic() > begin + VISIBLE_SECONDS:
            raise UserError(
                f"{path.parent.resolve()} has not shown in {VISIBLE_SECONDS:g} s what rank 0 has written: not the same "
                "folder on every node"
            )
        time.sleep(POLL_SECONDS)
    return time.monotonic() - begin


def _sees(path: Path) -> bool:
    return path in path.parent.iterdir() and path.read_bytes() == _content(path)


def _content(path: Path) -> bytes:
    return path.name.encode() * 1000
