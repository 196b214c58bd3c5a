"""The reading half of the one-sided protocol: one peer's newest snapshot, fetched without ever waiting for it.

Why a torn slot is never delivered. A reader takes the header (v), the slot, then the header again (w), and
accepts only if w − v ≤ SLOTS − 2. One writer makes headers monotone, and header accesses are element-wise atomic
(MPI 4.1, Section 12.7.1). The slot is not too old: its stores were synchronised before header v was set.
It is not too new: the first store of version v + SLOTS, the next in that slot, begins only after header
v + SLOTS − 1 was set and flushed; had the reader seen one such byte, its second look would have found
w ≥ v + SLOTS − 1, and rejected it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

import numpy as np
from mpi4py import MPI

from hpcdistill.exchange.traffic import Ledger
from hpcdistill.exchange.window.slots import SLOTS, Bytes, Shard, stamp_of, total_nbytes

CHUNK_NBYTES = 1 << 30  # one Rget moves at most this, well below what 32-bit counts can express

VERSION_BITS = 40  # of `Reader.staged`: at a thousand versions a second they last for 35 years


class Reader:
    """One place for a peer's snapshot, of which this rank fetches its share: some of the shards, perhaps none.

    The communication thread advances `fetches` and fills `staged`; the training thread empties it. While it is set,
    `memory` holds still.

    Args:
        window: of all ranks.
        shards_of: by peer, the shards that this rank fetches.
        nbytes: that those of any one peer take at most.
        ledger: where to enter what was read.
    """

    def __init__(self, window: MPI.Win, shards_of: Callable[[int], list[Shard]], nbytes: int, ledger: Ledger) -> None:
        self._window = window
        self._shards_of = shards_of
        self._ledger = ledger
        self._turn = (0, -1)  # how often it was turned, and to whom: one object, so that no thread sees half of it
        self._held: tuple[int, list[Shard]] = (-1, [])  # whose shards `memory` has, or is about to have
        self._under_way: list[MPI.Request] = []  # each keeps the memory alive that MPI writes to
        self.memory: Bytes = np.full(nbytes, 0, np.uint8)  # touched, unlike zeros: the first read is no slower
        self.staged = 0
        """Which snapshot waits for adoption, 0 for none. Ranks of a group have equal numbers if and only if they hold
        their shards of the same snapshot; of two, the larger is the one to have."""

    @property
    def peer(self) -> int:
        """Whose snapshots are fetched; -1 for nobody's yet."""
        return self._turn[1]

    @property
    def turn(self) -> int:
        """What is staged of the present peer is larger than this; what is left of a previous one, smaller."""
        return self._turn[0] << VERSION_BITS

    def turn_to(self, peer: int) -> None:
        """From now on fetch this peer's snapshots."""
        self._turn = (self._turn[0] + 1, peer)

    def drop(self) -> None:
        """Let go of what is staged: it is of a previous peer, or another rank of the group has a newer version."""
        peer, shards = self._held
        self._ledger.outdated[peer] += total_nbytes(shards)
        self.staged = 0

    def fetches(self) -> Generator[bool, None, None]:
        """Fetch the peer's newest version again and again; yields, for ever, whether bytes are under way."""
        turn, seen = 0, 0
        while True:
            if self.staged:
                yield False
                continue
            if self._turn[0] != turn:
                turn, peer = self._turn
                self._held, seen = (peer, self._shards_of(peer)), 0
            version = yield from self._newest()
            if version == seen:
                yield False
            elif (yield from self._fetch(version)):
                self.staged = (turn << VERSION_BITS) + version
                seen = version
            else:
                yield True

    def finish(self) -> None:
        """Wait for what is under way; `fetches` is not to be advanced again."""
        MPI.Request.Waitall(self._under_way)

    def _newest(self) -> Generator[bool, None, int]:
        """The newest version of which all shards are there, 0 for none."""
        return min((yield from self._headers()), default=0)

    def _fetch(self, version: int) -> Generator[bool, None, bool]:
        """Read this version's shards; whether they are whole."""
        peer, shards = self._held
        stamps = yield from self._slots(version)
        self._ledger.fetched[peer] += total_nbytes(shards)
        # The stamp says nothing new where MPI keeps its promises; where it does not, it is one more chance to notice.
        whole = max((yield from self._headers())) - version <= SLOTS - 2 and all(stamp == version for stamp in stamps)
        if not whole:
            self._ledger.overwritten[peer] += total_nbytes(shards)
        return whole

    def _headers(self) -> Generator[bool, None, list[int]]:
        """The newest version of each shard; they differ by one at most, for a group's ranks publish all or none."""
        _, shards = self._held
        nothing, versions = np.empty(1, np.int64), np.empty((len(shards), 1), np.int64)
        requests = []
        for shard, version in zip(shards, versions, strict=True):
            requests.append(self._window.Rget_accumulate(nothing, version, shard.target, op=MPI.NO_OP))
        yield from self._completion(requests)
        return [int(version) for version in versions[:, 0]]

    def _slots(self, version: int) -> Generator[bool, None, list[int]]:
        """Read a version's slot of each shard into `memory`, one behind the other; the versions in their stamps."""
        requests, begins, end = [], [], 0
        for shard in self._held[1]:
            begins.append(end)
            begin, end = end, end + shard.stride
            for first in range(0, shard.stride, CHUNK_NBYTES):
                chunk = self.memory[begin:end][first : first + CHUNK_NBYTES]
                place = (shard.offset(version) + first, chunk.nbytes, MPI.BYTE)
                requests.append(self._window.Rget(chunk, shard.target, place))
        yield from self._completion(requests)
        return [int(stamp_of(self.memory[begin:])[0]) for begin in begins]

    def _completion(self, requests: list[MPI.Request]) -> Generator[bool, None, None]:
        """Yield True until all requests are complete."""
        self._under_way = requests
        while not MPI.Request.Testall(requests):
            yield True
