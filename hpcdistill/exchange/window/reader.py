"""Reading half of the one-sided protocol: fetches a peer's newest snapshot without waiting for the peer.

Why a torn slot is never delivered. A reader reads the header (v), then the slot, then the header again (w), and accepts
only if w − v ≤ SLOTS − 2. There is one writer, so headers are monotone; header accesses are element-wise atomic
(MPI 4.1, Section 12.7.1). The slot is not too old: its stores were synchronised before the header was set to v. It is
not too new: the next version in that slot is v + SLOTS, and its first store begins only after header v + SLOTS − 1 was
set and flushed; a reader that saw any byte of it would read w ≥ v + SLOTS − 1 the second time, and reject the slot.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

import numpy as np
from mpi4py import MPI

from hpcdistill.exchange.traffic import TrafficStats
from hpcdistill.exchange.window.slots import SLOTS, Bytes, Shard, stamp_of, total_nbytes

CHUNK_NBYTES = 1 << 30  # one Rget moves at most this, well below what 32-bit counts can express

VERSION_BITS = 40  # of `Reader.staged`: enough for 35 years at a thousand versions a second


class Reader:
    """Buffer for one peer's snapshot, of which this rank fetches its share: some of the shards, possibly none.

    The communication thread advances `fetches` and sets `staged`; the training thread resets it to 0. While `staged` is
    set, `memory` does not change.

    Args:
        window: window of all ranks.
        shards_of: function that returns the shards of a peer that this rank fetches.
        memory: place for the shards of any peer.
        traffic: statistics in which to count the bytes read.
    """

    def __init__(
        self, window: MPI.Win, shards_of: Callable[[int], list[Shard]], memory: Bytes, traffic: TrafficStats
    ) -> None:
        self._window = window
        self._shards_of = shards_of
        self._traffic = traffic
        self._target = (0, -1)  # epoch and peer: one object, so that no thread sees half of a switch
        self._held: tuple[int, list[Shard]] = (-1, [])  # peer and shards that `memory` has, or is about to have
        self._pending: list[MPI.Request] = []  # each keeps the memory alive that MPI writes to
        self.memory = memory
        self.staged = 0
        """Number of the snapshot that waits for adoption, 0 for none. Ranks of a group have equal numbers if and only
        if they hold shards of the same snapshot; the larger of two numbers is the newer snapshot."""

    @property
    def peer(self) -> int:
        """Peer whose snapshots are fetched; -1 before the first one is set."""
        return self._target[1]

    @property
    def epoch(self) -> int:
        """Lower bound of `staged` for the present peer; snapshots of previous peers have smaller numbers."""
        return self._target[0] << VERSION_BITS

    def switch_peer(self, peer: int) -> None:
        """Fetch this peer's snapshots from now on."""
        self._target = (self._target[0] + 1, peer)

    def drop(self) -> None:
        """Discard what is staged: it is of a previous peer, or another rank of the group has a newer version."""
        peer, shards = self._held
        self._traffic.outdated[peer] += total_nbytes(shards)
        self.staged = 0

    def fetches(self) -> Generator[bool, None, None]:
        """Fetch the peer's newest version, again and again; yield True while bytes are under way, else False."""
        epoch, seen = 0, 0
        while True:
            if self.staged:
                yield False
                continue
            if self._target[0] != epoch:
                epoch, peer = self._target
                self._held, seen = (peer, self._shards_of(peer)), 0
            version = yield from self._newest()
            if version == seen:
                yield False
            elif (yield from self._fetch(version)):
                self.staged = (epoch << VERSION_BITS) + version
                seen = version
            else:
                yield True

    def finish(self) -> None:
        """Wait for the operations under way; `fetches` must not be advanced again."""
        MPI.Request.Waitall(self._pending)

    def _newest(self) -> Generator[bool, None, int]:
        """Return the newest version of which all shards are complete, 0 for none."""
        return min((yield from self._headers()), default=0)

    def _fetch(self, version: int) -> Generator[bool, None, bool]:
        """Read this version's shards; return True if they are whole."""
        peer, shards = self._held
        stamps = yield from self._slots(version)
        self._traffic.fetched[peer] += total_nbytes(shards)
        # The stamps are redundant if MPI is correct; if it is not, they are one more chance to notice.
        whole = max((yield from self._headers())) - version <= SLOTS - 2 and all(stamp == version for stamp in stamps)
        if not whole:
            self._traffic.overwritten[peer] += total_nbytes(shards)
        return whole

    def _headers(self) -> Generator[bool, None, list[int]]:
        """Return the newest version of each shard; they differ by at most 1, as a group's ranks publish together."""
        _, shards = self._held
        nothing, versions = np.empty(1, np.int64), np.empty((len(shards), 1), np.int64)
        requests = []
        for shard, version in zip(shards, versions, strict=True):
            requests.append(self._window.Rget_accumulate(nothing, version, shard.target, op=MPI.NO_OP))
        yield from self._completion(requests)
        return [int(version) for version in versions[:, 0]]

    def _slots(self, version: int) -> Generator[bool, None, list[int]]:
        """Read a version's slot of each shard into `memory`, contiguously; return the versions in their stamps."""
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
        self._pending = requests
        while not MPI.Request.Testall(requests):
            yield True
