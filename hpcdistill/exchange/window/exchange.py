"""Snapshots through MPI one-sided windows: the writer never waits for a reader, nor a reader for a writer.

Every rank owns one window: a header, the 64-bit number of its newest complete version, and a few slots (`slots.py`).
Rank r of a group publishes shard r of the group's snapshot (`writer.py`). A peer's ranks share the shards out among
themselves, fetch them (`reader.py`, which shows why they are whole), and adopt a snapshot when all hold one version.

Assumed of MPI: the unified memory model (public and private copy of a window are one, MPI 4.1, Section 12.4) and
MPI_THREAD_MULTIPLE. Both are checked; without them the constructor refuses.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from mpi4py import MPI
from torch import nn

from hpcdistill.distributed.checks import require_thread_multiple
from hpcdistill.distributed.groups import Groups
from hpcdistill.distributed.launch import end_job
from hpcdistill.errors import UserError
from hpcdistill.exchange.base import Exchange, Snapshot
from hpcdistill.exchange.codec import Packing, require_codec
from hpcdistill.exchange.layout import Layout
from hpcdistill.exchange.window.allocation import allocate_window
from hpcdistill.exchange.window.reader import Reader
from hpcdistill.exchange.window.slots import STAMP_NBYTES, Bytes, Shard, stamp_of, total_nbytes, window_nbytes
from hpcdistill.exchange.window.writer import Writer

# Between two looks of the communication thread:
IDLE_SECONDS = 5e-3  # when nothing is under way: 2 % of a core
BUSY_SECONDS = 1e-4  # while bytes travel; no pause at all would fight the training thread for MPI's lock
AWAKE_SECONDS = 1e-3  # when peers are about to read: between nodes their reads go on only as this rank looks
AWAKE_FOR_SECONDS = 0.25  # after an announcement; peers that begin later are served all the same, at half the rate

ABANDON_SECONDS = 5.0

NO_SHARE = np.iinfo(np.int64).max  # what a rank without a share contributes to the minimum of what is staged


class WindowExchange(Exchange):
    """The `Exchange` inside one MPI world.

    All one-sided calls are made by one communication thread per rank, which also keeps MPI progressing, so that
    a rank busy computing still serves its readers. The training thread only copies.

    Args:
        groups: who is who.
        model: whose parameters and buffers are published.
        degree: how many peers `learn_from` will name.
        codec: how weights travel, a key of `codec.CODECS`; the same for all groups.

    Raises:
        UserError: the groups' models differ, the codec does not carry a parameter, windows are not unified, or a node
            cannot hold them; on every rank.
    """

    def __init__(self, groups: Groups, model: nn.Module, degree: int, codec: str = "fp32") -> None:
        require_thread_multiple()
        layout = Layout.of(model)
        _require_equal_models(groups, layout)
        groups.require_same("exchange.codec", codec)
        require_codec(codec, layout)
        super().__init__()
        self._groups = groups
        self._model = model
        self._layout = layout
        self._shards = cache(self._find_shards)
        self._packings = cache(lambda size: [Packing(layout, codec, rank, size) for rank in range(size)])
        self._comm = groups.world.Dup()
        self._group_comm = groups.comm.Dup()

        packing = self._packings(groups.size)[groups.rank]
        self._window = allocate_window(self._comm, window_nbytes(STAMP_NBYTES + packing.nbytes))
        self._writer = Writer(self._window, self._comm.rank, packing, groups.device)
        share = max(total_nbytes(self._share(peer, groups.rank)) for peer in groups.peers)
        self._readers = [Reader(self._window, self._my_share, share, self.ledger) for _ in range(degree)]
        whole = max(total_nbytes(self._shards(peer)) for peer in groups.peers)
        self._whole: Bytes = np.full(whole if groups.size > 1 else 0, 0, np.uint8)
        self._agreement: tuple[np.ndarray[Any, Any], MPI.Request] | None = None
        self._thread = threading.Thread(target=self._communicate, name="exchange", daemon=True)
        self._open()

    def learn_from(self, peers: list[int]) -> None:
        """See `Exchange.learn_from`. A peer that stays is not fetched anew."""
        if len(peers) != len(self._readers):
            raise ValueError(f"peers = {peers}, but the exchange was opened for {len(self._readers)} at a time")
        leaving = [reader for reader in self._readers if reader.peer not in peers]
        coming = [peer for peer in peers if peer not in {reader.peer for reader in self._readers}]
        for reader, peer in zip(leaving, coming, strict=True):
            reader.turn_to(peer)

    def publish(self, step: int) -> bool:
        """See `Exchange.publish`. Costs a small allreduce and one copy of this rank's shard."""
        self._require_open()
        # All ranks or none: one that skipped alone would number its later shards differently from its neighbours.
        if not self._group_comm.allreduce(self._writer.idle, op=MPI.LAND):
            return False
        self.ledger.published += self._writer.write(self._layout.tensors(self._model), step)
        return True

    def collect(self) -> Iterator[Snapshot]:
        """See `Exchange.collect`. Costs an allgather for each snapshot adopted.

        What the ranks have staged is compared by a small allreduce that has until the next call to complete: waited
        for at once, it would make each step as slow as the group's latest rank once more.
        """
        self._require_open()
        if self._agreement:
            extremes, request = self._agreement
            request.Wait()
            for reader, low, negated in zip(self._readers, *extremes.tolist(), strict=True):
                high = -negated
                if reader.turn < low == high:
                    yield self._adopt(reader)
                    reader.staged = 0
                elif 0 < reader.staged < max(high, reader.turn):
                    reader.drop()
        self._agreement = self._compare_staged()

    def free(self) -> None:
        """See `Exchange.free`. Waits until all groups have come here, and goes on serving their reads until then."""
        self._require_open()
        if self._agreement:
            self._agreement[1].Wait()
        finished = self._comm.Ibarrier()
        while not finished.Test():
            time.sleep(IDLE_SECONDS)
        self._close()
        for reader in self._readers:
            reader.finish()
        self._writer.free()
        self._window.Unlock_all()
        self._comm.Barrier()
        self._window.Free()
        self._group_comm.Free()
        self._comm.Free()

    def abandon(self) -> None:
        """See `Exchange.abandon`."""
        self._close(ABANDON_SECONDS)  # the thread may be in a call of MPI to a rank that is gone

    def _close(self, seconds: float | None = None) -> None:
        self._closing.set()
        self._thread.join(seconds)

    def _open(self) -> None:
        self._comm.Barrier()
        self._window.Lock_all(MPI.MODE_NOCHECK)
        self._window.Sync()
        self._comm.Barrier()
        self._thread.start()

    def _find_shards(self, peer: int) -> list[Shard]:
        """All shards of a peer."""
        leader = self._groups.leader_of(peer)
        packings = self._packings(self._groups.sizes[peer])
        return [Shard(leader + rank, STAMP_NBYTES + packing.nbytes) for rank, packing in enumerate(packings)]

    def _share(self, peer: int, rank: int) -> list[Shard]:
        """The shards of a peer that `rank` of this group fetches: of groups of equal size, the one of its number."""
        shards, size = self._shards(peer), self._groups.size
        return shards[rank * len(shards) // size : (rank + 1) * len(shards) // size]

    def _my_share(self, peer: int) -> list[Shard]:
        return self._share(peer, self._groups.rank)

    def _compare_staged(self) -> tuple[np.ndarray[Any, Any], MPI.Request]:
        """The group's lowest and (negated) highest of what its ranks have staged of each peer, once complete."""
        staged = [reader.staged for reader in self._readers]
        shares = [self._my_share(reader.peer) for reader in self._readers]
        lowest = [turn if share else NO_SHARE for turn, share in zip(staged, shares, strict=True)]
        extremes = np.array([lowest, [-turn for turn in staged]], np.int64)
        return extremes, self._group_comm.Iallreduce(MPI.IN_PLACE, extremes, op=MPI.MIN)

    def _adopt(self, reader: Reader) -> Snapshot:
        whole = self._assemble(reader)
        strides = [shard.stride for shard in self._shards(reader.peer)]
        wires = torch.from_numpy(whole)[: sum(strides)].split(strides)
        packings = self._packings(len(strides))
        shards = [(packing, wire[STAMP_NBYTES:]) for packing, wire in zip(packings, wires, strict=True)]
        return Snapshot(reader.peer, int(stamp_of(whole)[1]), self._layout, shards)

    def _assemble(self, reader: Reader) -> Bytes:
        """All shards, one behind the other, of the snapshot of which each rank has staged its share."""
        if self._groups.size == 1:
            return reader.memory
        counts = [total_nbytes(self._share(reader.peer, rank)) for rank in range(self._groups.size)]
        self._group_comm.Allgatherv(reader.memory[: counts[self._groups.rank]], [self._whole, counts])
        return self._whole

    # Below: the communication thread.

    def _communicate(self) -> None:
        try:
            fetches = [reader.fetches() for reader in self._readers]
            announced = -math.inf
            while not self._closing.is_set():
                if self._writer.announce():
                    announced = time.monotonic()
                busy = False
                for fetch in fetches:
                    busy |= next(fetch)
                self._comm.Iprobe(source=MPI.ANY_SOURCE)  # lets MPI progress what others ask of this rank
                self.ledger.thread_seconds = time.thread_time()
                awake = time.monotonic() < announced + AWAKE_FOR_SECONDS
                time.sleep(BUSY_SECONDS if busy else AWAKE_SECONDS if awake else IDLE_SECONDS)
        except BaseException as error:
            end_job(error)


def _require_equal_models(groups: Groups, layout: Layout) -> None:
    digests = groups.world.allgather(layout.digest)
    if len(set(digests)) == 1:
        return
    layouts = groups.world.allgather(layout)
    other = next(rank for rank, digest in enumerate(digests) if digest != digests[0])
    raise UserError(
        f"the groups' models differ: group 0 against group {groups.group_of(other)}: "
        f"{layouts[0].difference(layouts[other])}; all groups must build the same model"
    )
