"""Ownership of a group's files in a run folder.

Two jobs in one folder would mix their checkpoints and metrics, as when a run is submitted twice, or requeued while the
old node still runs. So the leader of each group creates a file that names the owner, which no other process can create,
and renews its modification time every few seconds. File locks would be simpler, but many clusters have none.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from hpcdistill.distributed.groups import Groups
from hpcdistill.distributed.launch import end_job
from hpcdistill.errors import UserError
from hpcdistill.storage.run_dir import RunDir, remove_empty

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 30.0
"""Age at which the file of an owner on another host counts as abandoned; an owner that resumes later must end."""

LOOK_SECONDS = 0.2
RELEASE_SECONDS = 5.0
"""Time to wait at the end for a file server that does not answer."""

MAX_NBYTES = 1 << 16  # read of an owner file, which anyone may have written


@contextmanager
def owned(run: RunDir, groups: Groups) -> Iterator[None]:
    """Make the folder of a run, and own the files of this world's groups in it during the block.

    Collective over the world. Folders that are still empty at the end are removed.

    Raises:
        UserError: files cannot be written there, or another process owns the files of one of the groups; on every rank,
            before anything is changed.
    """
    claim = Claim(run, groups.group) if groups.is_leader else None
    taken = groups.world.allgather(_take(run, claim))
    try:
        for error, _ in taken:
            if error:
                raise error
        yield
    finally:
        if claim:
            claim.release()
            for _, made in taken:
                remove_empty(made)


class Claim:
    """Right to write a group's files in a run folder.

    An owner on this host has ended when its process has; an owner on another host, when its file has not been renewed
    for `STALE_SECONDS`. All times are the file server's, because the clocks of hosts may differ.

    Args:
        run: folder of the run, which exists.
        group: group whose files are claimed.
    """

    def __init__(self, run: RunDir, group: int) -> None:
        self._path = run.owner(group)
        self._content = json.dumps(_this_process()).encode()
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="owner", daemon=True)

    def take(self) -> None:
        """Create the file, replacing that of an owner that has ended; finding that out may take `STALE_SECONDS`.

        Raises:
            UserError: the owner still runs, or the file cannot be created.
        """
        try:
            while not self._make():
                if owner := _read(self._path):
                    self._require_gone(owner)
                    self._remove(owner)
        except OSError as error:
            raise UserError(
                f"{self._path}, which says who writes to the run, cannot be made: {error.strerror}; make room there, "
                "remove what is in its place, or choose another --run_dir"
            ) from None
        self._thread.start()

    def release(self) -> None:
        """Remove the file, if it is this claim's."""
        self._released.set()
        if self._thread.is_alive():
            self._thread.join(RELEASE_SECONDS)
        if self._thread.is_alive():  # the file server does not answer that thread, nor would it answer this one
            return
        with suppress(OSError):
            owner = _read(self._path)
            if owner and owner.content == self._content:
                self._path.unlink()

    def _make(self) -> bool:
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        try:
            if os.write(descriptor, self._content) < len(self._content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            self._path.unlink()
            raise
        finally:
            os.close(descriptor)
        return True

    def _require_gone(self, owner: _Owner) -> None:
        alive = owner.is_alive()
        if alive is None:
            alive = self._is_renewed(owner)
        if alive:
            age = max(_time_of(self._path.parent) - owner.time, 0)
            raise UserError(
                f"run_dir = {self._path.parent} belongs to another run: {owner} writes there, and last said so "
                f"{age:.0f} s ago; end that run ({owner.remedy}), or choose another --run_dir"
            )

    def _is_renewed(self, owner: _Owner) -> bool:
        """Wait until the file is renewed or stale; return True if it was renewed."""
        age = max(_time_of(self._path.parent) - owner.time, 0)
        if age < STALE_SECONDS:
            logger.warning(
                f"waiting up to {STALE_SECONDS - age:.0f} s for a sign of life of the owner of {self._path}: {owner}"
            )
        end = time.monotonic() + STALE_SECONDS - age
        while time.monotonic() < end:
            time.sleep(LOOK_SECONDS)
            now = _read(self._path)
            if now is None or now.content != owner.content:
                return False
            if now.time != owner.time:
                return True
        return False

    def _remove(self, owner: _Owner) -> None:
        """Remove this owner's file, but not one that another process has created in its place."""
        grave = self._path.with_name(f".{self._path.name}.{secrets.token_hex(8)}")
        with suppress(FileNotFoundError):
            self._path.rename(grave)
            found = _read(grave)
            if found and found.content != owner.content:
                grave.rename(self._path)
            else:
                grave.unlink()

    # Below: the thread.

    def _renew(self) -> None:
        while not self._released.wait(HEARTBEAT_SECONDS):
            try:
                self._renew_once()
            except OSError:  # the disk is full, of which others warn; from another host this run may seem to have ended
                pass
            except UserError as error:
                if not self._released.is_set():
                    end_job(error)

    def _renew_once(self) -> None:
        owner = _read(self._path)
        if owner is None:
            logger.warning(f"{self._path} is gone, and with it perhaps other files of the run; it is made again")
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._make()
        elif owner.content != self._content:
            raise UserError(
                f"run_dir = {self._path.parent} has been taken over by {owner} while this one stood "
                f"still for more than {STALE_SECONDS:.0f} s; this one ends without a checkpoint"
            )
        else:
            os.utime(self._path)


@dataclass(frozen=True)
class _Owner:
    """Content and time of an owner file."""

    content: bytes
    time: float
    """Time of the last renewal, by the file server's clock."""

    @property
    def facts(self) -> dict[str, Any]:
        """Facts in the file, as `_this_process` makes them; empty if the file is incomplete."""
        try:
            facts = json.loads(self.content)
        except ValueError:
            return {}
        return facts if isinstance(facts, dict) else {}

    @property
    def remedy(self) -> str:
        """Command that ends this owner."""
        facts = self.facts
        return f"scancel {facts['slurm_job']}" if "slurm_job" in facts else f"kill {facts.get('pid')} on that host"

    def is_alive(self) -> bool | None:
        """Return True if its process runs, False if not, None if that cannot be seen from here."""
        pid, start = self.facts.get("pid"), self.facts.get("process_start")
        if self.facts.get("place") != _place() or not isinstance(pid, int):
            return None
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # another user's process, whose folder in /proc may be hidden
            return True if _process_start(pid) == start else None
        return _process_start(pid) == start

    def __str__(self) -> str:
        job = self.facts.get("slurm_job")
        pid, host, since = (self.facts.get(key, "?") for key in ("pid", "host", "since"))
        return f"pid {pid} on {host} ({f'Slurm job {job}, ' if job else ''}since {since})"


def _take(run: RunDir, claim: Claim | None) -> tuple[UserError | None, list[Path]]:
    """Take the claim; return the error if that failed, and the folders made for it."""
    made: list[Path] = []
    try:
        if claim:
            made = run.make()
            claim.take()
    except UserError as error:
        return error, made
    return None, made


def _read(path: Path) -> _Owner | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        return _Owner(os.read(descriptor, MAX_NBYTES), os.fstat(descriptor).st_mtime)
    finally:
        os.close(descriptor)


def _this_process() -> dict[str, Any]:
    slurm = {"slurm_job": "SLURM_JOB_ID", "slurm_restart_count": "SLURM_RESTART_COUNT"}
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        **{key: os.environ[name] for key, name in slurm.items() if name in os.environ},
        "place": _place(),
        "process_start": _process_start(os.getpid()),
        "id": secrets.token_hex(8),
    }


def _place() -> str:
    """Return a text that identifies the PID namespace: this boot of this host, and this container."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink()}"


def _process_start(pid: int) -> str | None:
    """Return the start time of a process, in clock ticks since the host's boot; None if it has ended."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else fields[18]


def _time_of(folder: Path) -> float:
    """Return the time, in seconds since 1970, by the clock of the folder's file server."""
    with TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime
