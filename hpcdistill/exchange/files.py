"""Transport through a folder that all groups share, for groups that are jobs of their own.

The leader of a group writes each snapshot to a new file, numbered one higher than the last, and removes all but its
newest few; the leaders of its peers look for the highest number. A file appears whole or not at all, and carries a
checksum. So no group waits for another: a peer that is absent has no new files, and one that was restarted, at any
step, continues the numbering. A reader that finds a file missing or damaged takes another one. Since anyone can write a
file with a valid checksum, the content of each file is checked before it is used.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpcdistill.distributed.groups import Groups
from hpcdistill.distributed.launch import end_job
from hpcdistill.errors import UserError
from hpcdistill.exchange.base import Exchange, Payload, Snapshot
from hpcdistill.exchange.registry import register_transport
from hpcdistill.storage.state_file import State, difference, load_state, save_state

logger = logging.getLogger(__name__)

KIND = "snapshot"
KEEP = 3
"""Snapshots of a group that are kept: a peer that has found the newest has two exchange intervals' time to read it."""

POLL_SECONDS = 0.2

# Time for the thread to end once it is asked to; a file server may never answer it.
FREE_SECONDS = 60.0  # after training, when the last snapshot may still have to be written
ABANDON_SECONDS = 5.0

MAX_STEP = np.iinfo(np.int64).max

MORE_NBYTES = 64 << 20
"""Allowance for the rest of a file, beyond twice its payload; a larger file is not a snapshot."""

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class FilesExchange(Exchange):
    """Exchange through a shared filesystem. Only leaders read and write files, each in a thread beside the training.

    Args:
        groups: the world and its groups; peers may be in this world, in others, or absent.
        payload: state that this group publishes.
        folder: folder of the snapshots, the same for all groups; made when needed.
    """

    def __init__(self, groups: Groups, payload: Payload, folder: Path) -> None:
        super().__init__()
        self._groups = groups
        self._comm = groups.comm
        self._payload = payload
        self._folder = folder
        self._facts = {"groups": groups.count, **payload.facts}
        self._nbytes = payload.nbytes(0, 1)
        self._peers: list[int] = []
        self._news: tuple[list[int], np.ndarray[Any, Any], Any] | None = None
        self._wire = torch.zeros(self._nbytes, dtype=torch.uint8, device=payload.device)
        self._received: Bytes = np.zeros(self._nbytes, np.uint8)
        # Shared by the leader's two threads: the training thread sets the first and empties the second.
        self._offered: tuple[int, torch.Tensor] | None = None
        self._arrived: dict[int, tuple[int, Bytes]] = {}
        # Used by the other thread only, by peer: number of the last file taken, files refused, peers complained of.
        self._seen: Counter[int] = Counter()
        self._refused: dict[int, set[int]] = defaultdict(set)
        self._complained: set[int] = set()
        self._number = 0  # of the last file written
        self._thread = threading.Thread(target=self._communicate, name="exchange", daemon=True)
        if groups.is_leader:
            self._thread.start()

    def set_peers(self, peers: list[int]) -> None:
        """See `Exchange.set_peers`."""
        self._peers = list(peers)
        for peer in set(self._arrived) - set(peers):
            self.traffic.outdated[peer] += self._nbytes
            del self._arrived[peer]

    def publish(self, step: int) -> bool:
        """See `Exchange.publish`. Costs a small broadcast and, on the leader, one copy of the payload."""
        self._require_open()
        if not self._comm.bcast(self._offered is None):
            return False
        if self._groups.is_leader:
            self._payload.encode(0, 1, self._wire)
            self._offered = step, self._wire.cpu()
            self.traffic.published += self._nbytes
            logger.debug(f"group {self._groups.group}: published step {step}, {self._nbytes} bytes")
        return True

    def collect(self) -> Iterator[Snapshot]:
        """See `Exchange.collect`. Costs a broadcast of each snapshot adopted.

        A small broadcast tells the group what the leader has; it has until the next call to complete.
        """
        self._require_open()
        if self._news:
            peers, steps, request = self._news
            request.Wait()
            for peer, step in zip(peers, steps, strict=True):
                if step >= 0 and peer in self._peers:
                    yield self._adopt(peer, int(step))
        steps = np.array([self._arrived.get(peer, (-1,))[0] for peer in self._peers], np.int64)
        self._news = self._peers, steps, self._comm.Ibcast(steps)

    def free(self) -> None:
        """See `Exchange.free`. Waits for no other group; the last snapshot is still written."""
        self._require_open()
        if self._news:
            self._news[2].Wait()
        self._close(FREE_SECONDS)

    def abandon(self) -> None:
        """See `Exchange.abandon`."""
        self._close(ABANDON_SECONDS)

    def _close(self, seconds: float) -> None:
        self._closing.set()
        if self._groups.is_leader:
            self._thread.join(seconds)
            if self._thread.is_alive():
                logger.warning(
                    f"group {self._groups.group}: {self._folder} has not answered in {seconds:.0f} s; it is given up"
                )

    def _adopt(self, peer: int, step: int) -> Snapshot:
        wire = self._arrived.pop(peer)[1] if self._groups.is_leader else self._received
        self._comm.Bcast(wire)
        return Snapshot(peer, step, [torch.from_numpy(wire)])

    # Below: the leader's other thread.

    def _communicate(self) -> None:
        try:
            self._remove_temporary_files()
            while not self._closing.wait(POLL_SECONDS):
                self._write()
                for peer in self._peers:
                    if peer not in self._arrived:
                        self._read(peer)
                self.traffic.thread_seconds = time.thread_time()
            self._write()
        except BaseException as error:
            end_job(error)

    def _write(self) -> None:
        """Write the snapshot that was offered, if there is one; when the disk cannot take it, only that one is lost."""
        if self._offered is None:
            return
        step, wire = self._offered
        group = self._groups.group
        try:
            snapshots = self._snapshots(group)
            number = self._number = max([self._number, *snapshots]) + 1
            save_state(self._path(group, number), KIND, {"step": step, "wire": wire, **self._facts})
            for old in sorted(snapshots)[: 1 - KEEP]:
                snapshots[old].unlink(missing_ok=True)
        except OSError as error:
            logger.warning(f"group {group}: no snapshot at step {step} for its peers: {error}")
        self._offered = None

    def _read(self, peer: int) -> None:
        """Read the peer's newest file, if it is new; pass over one that is not usable, with one warning a peer."""
        try:
            snapshots = self._snapshots(peer)
        except OSError as error:
            self._complain(peer, str(error))
            return
        if max(snapshots, default=0) < self._seen[peer]:
            self._seen[peer] = 0  # the folder was emptied: the peer's next job has begun to count anew
        self._refused[peer] &= snapshots.keys()
        newest = max(snapshots.keys() - self._refused[peer], default=0)
        if newest <= self._seen[peer]:
            return
        path = snapshots[newest]
        try:
            state = load_state(path, KIND, most=2 * self._nbytes + MORE_NBYTES)
            self._require_usable(state, path)
        except UserError as error:
            if os.path.lexists(path):  # otherwise the peer has published and removed it meanwhile: there are newer ones
                self._complain(peer, str(error))
                self._refused[peer].add(newest)
            return
        self._complained.discard(peer)
        self.traffic.fetched[peer] += self._nbytes
        self._seen[peer] = newest
        self._arrived[peer] = state["step"], state["wire"].numpy()
        logger.debug(f"group {self._groups.group}: fetched step {state['step']} of group {peer}, {self._nbytes} bytes")

    def _complain(self, peer: int, reason: str) -> None:
        if peer not in self._complained:
            logger.warning(f"group {self._groups.group} takes nothing from group {peer} for now: {reason}")
            self._complained.add(peer)

    def _require_usable(self, state: State, path: Path) -> None:
        """Refuse a file that is whole but not a snapshot of this run."""
        for name, expected in self._facts.items():
            found = state.get(name)
            if type(found) is not type(expected) or found != expected:
                raise UserError(f"{path} is not of this run: {difference(name, found, expected)}")
        step, wire = state.get("step"), state.get("wire")
        if type(step) is not int or not 0 <= step <= MAX_STEP:
            raise UserError(f"{path} says step = {step!r}, where a count of steps was expected")
        if not isinstance(wire, torch.Tensor) or wire.dtype != torch.uint8 or wire.shape != (self._nbytes,):
            found = f"{list(wire.shape)} {wire.dtype}" if isinstance(wire, torch.Tensor) else type(wire).__name__
            raise UserError(f"{path} holds a payload of {found}, where [{self._nbytes}] uint8 was expected")

    def _path(self, group: int, number: int) -> Path:
        return self._folder / f"g{group}-{number:010d}.h5"

    def _snapshots(self, group: int) -> dict[int, Path]:
        """Return a group's files by number."""
        pattern = re.compile(rf"g{group}-(\d{{10,18}})\.h5")
        matches = ((pattern.fullmatch(path.name), path) for path in self._folder.glob(f"g{group}-*.h5"))
        return {int(match[1]): path for match, path in matches if match}

    def _remove_temporary_files(self) -> None:
        """Remove the files that this group's former job was writing when it was killed."""
        with suppress(OSError):
            for path in self._folder.glob(f".g{self._groups.group}-*"):
                path.unlink(missing_ok=True)


@register_transport("files")
def _open(groups: Groups, payload: Payload, degree: int, folder: Path | None) -> FilesExchange:
    if folder is None:
        raise UserError("transport 'files' needs a folder that all groups share; give it as folder=...")
    return FilesExchange(groups, payload, folder)
