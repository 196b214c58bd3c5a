"""Snapshots as files in a folder that all groups see, for groups that are jobs of their own.

The leader of a group writes each snapshot to a new file, numbered one higher than the last, and removes all but its
newest few; the leaders of its peers look for the highest number. A file appears whole or not at all, and carries a
checksum. So nobody waits: a peer that is absent has no new files, and one that was restarted, at whatever step, goes on
numbering. Who finds a file gone or damaged takes another one. A checksum does not make a snapshot: what a file holds is
looked at before it is believed.
"""

from __future__ import annotations

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
from torch import nn

from hpcdistill.distributed.groups import Groups
from hpcdistill.distributed.launch import end_job
from hpcdistill.errors import UserError, warn
from hpcdistill.exchange.base import Exchange, Snapshot
from hpcdistill.exchange.codec import Packing, require_codec
from hpcdistill.exchange.layout import Layout
from hpcdistill.storage.state_file import State, difference, load_state, save_state

KIND = "snapshot"
KEEP = 3
"""How many of a group's snapshots stay, so that who has found the newest has two publishes' time to read it."""

POLL_SECONDS = 0.2

# For the thread to end, once asked; a file server may never answer it.
FREE_SECONDS = 60.0  # after training: until what was published last is written
ABANDON_SECONDS = 5.0

MAX_STEP = np.iinfo(np.int64).max

MORE_NBYTES = 64 << 20
"""Of a file beyond twice its weights; one that is larger still is no snapshot."""


class FilesExchange(Exchange):
    """The `Exchange` through a shared filesystem. Only leaders touch it, each in a thread beside the training.

    Args:
        groups: who is who; peers may be in this world, in others, or nowhere.
        model: whose parameters and buffers are published.
        folder: the same for all groups; made when needed.
        codec: how weights travel, a key of `codec.CODECS`; the same for all groups.

    Raises:
        UserError: the codec does not carry a parameter; on every rank.
    """

    def __init__(self, groups: Groups, model: nn.Module, folder: Path, codec: str = "fp32") -> None:
        layout = Layout.of(model)
        require_codec(codec, layout)
        super().__init__()
        self._groups = groups
        self._comm = groups.comm.Dup()
        self._model = model
        self._layout = layout
        self._packing = Packing(layout, codec, rank=0, size=1)
        self._folder = folder
        self._facts = {
            "groups": groups.count,
            "codec": codec,
            "tensors": [str(entry) for entry in layout.entries],
        }
        self._peers: list[int] = []
        self._news: tuple[list[int], np.ndarray[Any, Any], Any] | None = None
        self._wire = torch.zeros(self._packing.nbytes, dtype=torch.uint8, device=groups.device)
        self._received = np.zeros(self._packing.nbytes, np.uint8)
        # Between the leader's two threads: the training thread sets the first and empties the second.
        self._offered: tuple[int, torch.Tensor] | None = None
        self._arrived: dict[int, tuple[int, np.ndarray[Any, Any]]] = {}
        # By peer; the thread's own: the number of the file taken last, those refused, and whether that was said.
        self._seen: Counter[int] = Counter()
        self._refused: dict[int, set[int]] = defaultdict(set)
        self._complained: set[int] = set()
        self._number = 0  # of the file written last
        self._thread = threading.Thread(target=self._communicate, name="exchange", daemon=True)
        if groups.is_leader:
            self._thread.start()

    def learn_from(self, peers: list[int]) -> None:
        """See `Exchange.learn_from`."""
        self._peers = list(peers)
        for peer in set(self._arrived) - set(peers):
            self.ledger.outdated[peer] += self._packing.nbytes
            del self._arrived[peer]

    def publish(self, step: int) -> bool:
        """See `Exchange.publish`. Costs a small broadcast and, on the leader, one copy of the model."""
        self._require_open()
        if not self._comm.bcast(self._offered is None):
            return False
        tensors = self._layout.tensors(self._model)
        if self._groups.is_leader:
            self._packing.encode(tensors, self._wire)
            self._offered = step, self._wire.cpu()
            self.ledger.published += self._packing.nbytes
        return True

    def collect(self) -> Iterator[Snapshot]:
        """See `Exchange.collect`. Costs a broadcast of each snapshot adopted.

        What the leader has is told by a small broadcast that has until the next call to complete.
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
        """See `Exchange.free`; here waits for no other group. What was published last is still written."""
        self._require_open()
        if self._news:
            self._news[2].Wait()
        self._close(FREE_SECONDS)
        self._comm.Free()

    def abandon(self) -> None:
        """See `Exchange.abandon`."""
        self._close(ABANDON_SECONDS)

    def _close(self, seconds: float) -> None:
        self._closing.set()
        if self._groups.is_leader:
            self._thread.join(seconds)
            if self._thread.is_alive():
                warn(f"group {self._groups.group}: {self._folder} has not answered in {seconds:.0f} s; it is given up")

    def _adopt(self, peer: int, step: int) -> Snapshot:
        wire = self._arrived.pop(peer)[1] if self._groups.is_leader else self._received
        self._comm.Bcast(wire)
        return Snapshot(peer, step, self._layout, [(self._packing, torch.from_numpy(wire))])

    # Below: the leader's other thread.

    def _communicate(self) -> None:
        try:
            self._remove_litter()
            while not self._closing.wait(POLL_SECONDS):
                self._write()
                for peer in self._peers:
                    if peer not in self._arrived:
                        self._read(peer)
                self.ledger.thread_seconds = time.thread_time()
            self._write()
        except BaseException as error:
            end_job(error)

    def _write(self) -> None:
        """Make a file of what was offered, if anything was; a disk that cannot take it costs this snapshot only."""
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
            warn(f"group {group}: no snapshot at step {step} for its peers: {error}")
        self._offered = None

    def _read(self, peer: int) -> None:
        """Take the peer's newest file, if it is news; one that is no good is passed over and complained of once."""
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
            state = load_state(path, KIND, most=2 * self._packing.nbytes + MORE_NBYTES)
            self._require_ours(state, path)
        except UserError as error:
            if os.path.lexists(path):  # otherwise the peer has published and removed it meanwhile: there are newer ones
                self._complain(peer, str(error))
                self._refused[peer].add(newest)
            return
        self._complained.discard(peer)
        self.ledger.fetched[peer] += self._packing.nbytes
        self._seen[peer] = newest
        self._arrived[peer] = state["step"], state["wire"].numpy()

    def _complain(self, peer: int, reason: str) -> None:
        if peer not in self._complained:
            warn(f"group {self._groups.group} takes nothing from group {peer} for now: {reason}")
            self._complained.add(peer)

    def _require_ours(self, state: State, path: Path) -> None:
        """Refuse a file that is whole but no snapshot of this run; anyone may write to the folder."""
        for name, expected in self._facts.items():
            found = state.get(name)
            if type(found) is not type(expected) or found != expected:
                raise UserError(f"{path} is not of this run: {difference(name, found, expected)}")
        step, wire = state.get("step"), state.get("wire")
        if type(step) is not int or not 0 <= step <= MAX_STEP:
            raise UserError(f"{path} says step = {step!r}, where a count of steps was expected")
        if not isinstance(wire, torch.Tensor) or wire.dtype != torch.uint8 or wire.shape != (self._packing.nbytes,):
            found = f"{list(wire.shape)} {wire.dtype}" if isinstance(wire, torch.Tensor) else type(wire).__name__
            raise UserError(f"{path} holds weights as {found}, where [{self._packing.nbytes}] uint8 was expected")

    def _path(self, group: int, number: int) -> Path:
        return self._folder / f"g{group}-{number:010d}.h5"

    def _snapshots(self, group: int) -> dict[int, Path]:
        """A group's files by number."""
        pattern = re.compile(rf"g{group}-(\d{{10,18}})\.h5")
        matches = ((pattern.fullmatch(path.name), path) for path in self._folder.glob(f"g{group}-*.h5"))
        return {int(match[1]): path for match, path in matches if match}

    def _remove_litter(self) -> None:
        """What was being written when a former job of this group was killed."""
        with suppress(OSError):
            for path in self._folder.glob(f".g{self._groups.group}-*"):
                path.unlink(missing_ok=True)
