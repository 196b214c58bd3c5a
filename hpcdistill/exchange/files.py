"""Snapshots as files in a folder that all groups see, for groups that are jobs of their own.

The leader of a group writes each snapshot to a new file, numbered one higher than the last, and removes all but its
newest few; the leaders of its peers look for the highest number. A file appears whole or not at all, and carries a
checksum. So nobody waits: a peer that is absent has no new files, and one that was restarted, at whatever step, goes on
numbering. Who finds a file gone or damaged takes the next one.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hpcdistill.errors import UserError, warn
from hpcdistill.exchange import Exchange, Snapshot
from hpcdistill.exchange.codec import Packing, require_codec
from hpcdistill.groups import Groups
from hpcdistill.job import end_job
from hpcdistill.snapshot import Layout
from hpcdistill.state_file import State, difference, load_state, save_state

KIND = "snapshot"
KEEP = 3
"""How many of a group's snapshots stay, so that who has found the newest has two publishes' time to read it."""

POLL_SECONDS = 0.2


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
        self._model_facts = {"codec": codec, "tensors": [str(entry) for entry in layout.entries]}
        self._peers: list[int] = []
        self._news: tuple[list[int], np.ndarray[Any, Any], Any] | None = None
        self._wire = torch.zeros(self._packing.nbytes, dtype=torch.uint8, device=groups.device)
        self._received = np.zeros(self._packing.nbytes, np.uint8)
        # Between the leader's two threads: the training thread sets the first and empties the second.
        self._offered: tuple[int, torch.Tensor] | None = None
        self._arrived: dict[int, tuple[int, np.ndarray[Any, Any]]] = {}
        self._seen: dict[int, int] = {}
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
        self.abandon()
        self._comm.Free()

    def abandon(self) -> None:
        """See `Exchange.abandon`."""
        self._closing.set()
        if self._groups.is_leader:
            self._thread.join()

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
        snapshots = self._snapshots(group)
        number = self._number = max([self._number, *snapshots]) + 1
        try:
            save_state(self._path(group, number), KIND, {"step": step, "wire": wire, **self._model_facts})
            for old in sorted(snapshots)[: 1 - KEEP]:
                snapshots[old].unlink(missing_ok=True)
        except OSError as error:
            warn(f"group {group}: no snapshot at step {step} for its peers: {error}")
        self._offered = None

    def _read(self, peer: int) -> None:
        snapshots = self._snapshots(peer)
        newest = max(snapshots, default=0)
        if newest <= self._seen.get(peer, 0):
            return
        path = snapshots[newest]
        try:
            state = load_state(path, KIND)
            self._require_same_model(state, path)
        except UserError as error:
            if path.exists():  # otherwise the peer has published and removed it meanwhile: there are newer ones
                warn(f"group {self._groups.group} takes nothing from group {peer} for now: {error}")
                self._seen[peer] = newest
            return
        self.ledger.fetched[peer] += self._packing.nbytes
        self._seen[peer] = newest
        self._arrived[peer] = state["step"], state["wire"].numpy()

    def _require_same_model(self, state: State, path: Path) -> None:
        for name, mine in self._model_facts.items():
            if state[name] != mine:
                raise UserError(f"{path} is of another model or codec: {difference(name, state[name], mine)}")

    def _path(self, group: int, number: int) -> Path:
        return self._folder / f"g{group}-{number:010d}.h5"

    def _snapshots(self, group: int) -> dict[int, Path]:
        """A group's files by number."""
        pattern = re.compile(rf"g{group}-(\d+)\.h5")
        matches = ((pattern.fullmatch(path.name), path) for path in self._folder.glob(f"g{group}-*.h5"))
        return {int(match[1]): path for match, path in matches if match}

    def _remove_litter(self) -> None:
        """What was being written when a former job of this group was killed."""
        for path in self._folder.glob(f".g{self._groups.group}-*"):
            path.unlink(missing_ok=True)
