"""Transport through MPI one-sided windows: no writer waits for a reader, and no reader for a writer.

Every rank owns one window: a header, the 64-bit number of its newest complete version, and a few slots (`slots.py`).
Rank r of a group publishes shard r of the group's snapshot (`writer.py`). The ranks of a peer divide the shards among
themselves, fetch them (`reader.py`, which shows why they are whole), and adopt a snapshot when all hold one version.

MPI must provide the unified memory model (public and private copy of a window are the same, MPI 4.1, Section 12.4) and
MPI_THREAD_MULTIPLE. The constructor checks both, and raises without them.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from mpi4py import MPI

from hpcdistill.distributed.checks import require_mpi, require_thread_multiple
from hpcdistill.distributed.groups import Groups
from hpcdistill.distributed.launch import end_job
from hpcdistill.errors import UserError
from hpcdistill.exchange.base import Exchange, Payload, Snapshot
from hpcdistill.exchange.window.allocation import allocate_window
from hpcdistill.exchange.window.offload import host_memory
from hpcdistill.exchange.window.reader import Reader
from hpcdistill.exchange.window.slots import STAMP_NBYTES, Bytes, Shard, stamp_of, total_nbytes, window_nbytes
from hpcdistill.exchange.window.writer import Writer
from hpcdistill.storage.state_file import difference

logger = logging.getLogger(__name__)

# Pauses of the communication thread:
IDLE_SECONDS = 5e-3  # while nothing is under way: 2 % of a core
BUSY_SECONDS = 1e-4  # while this rank reads; without a pause it would compete with the training thread for MPI's lock
AWAKE_SECONDS = 1e-3  # while peers may read: between nodes their reads progress only when this rank calls MPI
AWAKE_FOR_SECONDS = 0.25  # after an announcement; peers that begin later are served as well, at half the rate

ABANDON_SECONDS = 5.0

NO_SHARE = np.iinfo(np.int64).max  # in place of the staged version, of a rank without a share: neutral to the minimum


class WindowExchange(Exchange):
    """Exchange inside one MPI world.

    One communication thread per rank makes all one-sided calls. It also keeps MPI progressing, so that a rank busy
    computing still serves its readers. The training thread only copies.

    Args:
        groups: the world and its groups.
        payload: state that this group publishes.
        degree: number of peers that `set_peers` will name.

    Raises:
        UserError: the groups' payloads differ, windows are not unified, or a node cannot hold them; on every rank.
    """

    def __init__(self, groups: Groups, payload: Payload, degree: int) -> None:
        require_thread_multiple()
        _require_equal_payloads(groups, payload)
        super().__init__()
        self._groups = groups
        self._shards = cache(self._find_shards)
        self._payload = payload
        self._comm = require_mpi(groups.world, "WindowExchange").Dup()
        self._group_comm = require_mpi(groups.comm, "WindowExchange").Dup()

        nbytes = payload.nbytes(groups.rank, groups.size)
        self._window = allocate_window(self._comm, window_nbytes(STAMP_NBYTES + nbytes))
        encode = partial(payload.encode, groups.rank, groups.size)
        self._writer = Writer(self._window, self._comm.rank, encode, nbytes, payload.device)
        share = max(total_nbytes(self._share(peer, groups.rank)) for peer in groups.peers)
        whole = max(total_nbytes(self._shards(peer)) for peer in groups.peers) if groups.size > 1 else 0
        # The GPU reads the shares of a group of one rank, and else what `_assemble` has gathered from them.
        gpu, host = payload.device, torch.device("cpu")
        memories = [host_memory(share, host if whole else gpu) for _ in range(degree)]
        self._readers = [Reader(self._window, self._my_share, memory, self.traffic) for memory in memories]
        self._whole = host_memory(whole, gpu)
        self._agreement: tuple[np.ndarray[Any, Any], MPI.Request] | None = None
        self._thread = threading.Thread(target=self._communicate, name="exchange", daemon=True)
        self._open()

    def set_peers(self, peers: list[int]) -> None:
        """See `Exchange.set_peers`. A peer that stays is not fetched again."""
        if len(peers) != len(self._readers):
            raise ValueError(f"peers = {peers}, but the exchange was opened for {len(self._readers)} at a time")
        leaving = [reader for reader in self._readers if reader.peer not in peers]
        coming = [peer for peer in peers if peer not in {reader.peer for reader in self._readers}]
        for reader, peer in zip(leaving, coming, strict=True):
            reader.switch_peer(peer)

    def publish(self, step: int) -> bool:
        """See `Exchange.publish`. Costs a small allreduce and one copy of this rank's shard."""
        self._require_open()
        # All ranks or none: a rank that skipped alone would number its later shards differently from its neighbours.
        if not self._group_comm.allreduce(self._writer.idle, op=MPI.LAND):
            return False
        nbytes = self._writer.write(step)
        self.traffic.published += nbytes
        self._debug(f"published step {step}, {nbytes} bytes")
        return True

    def collect(self) -> Iterator[Snapshot]:
        """See `Exchange.collect`. Costs an allgather for each snapshot adopted.

        A small allreduce compares what the ranks have staged. It has until the next call to complete: waiting for it at
        once would make each step wait for the group's slowest rank a second time.
        """
        self._require_open()
        if self._agreement:
            extremes, request = self._agreement
            request.Wait()
            for reader, low, negated in zip(self._readers, *extremes.tolist(), strict=True):
                high = -negated
                if reader.epoch < low == high:
                    yield self._adopt(reader)
                    reader.staged = 0
                elif 0 < reader.staged < max(high, reader.epoch):
                    reader.drop()
        self._agreement = self._compare_staged()

    def free(self) -> None:
        """See `Exchange.free`. Waits for all groups to call it, and serves their reads until then."""
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
        """Return all shards of a peer, in order."""
        leader, size = self._groups.leader_of(peer), self._groups.sizes[peer]
        return [Shard(leader + rank, STAMP_NBYTES + self._payload.nbytes(rank, size)) for rank in range(size)]

    def _share(self, peer: int, rank: int) -> list[Shard]:
        """Return the shards of a peer that `rank` of this group fetches; between groups of equal size, shard `rank`."""
        shards, size = self._shards(peer), self._groups.size
        return shards[rank * len(shards) // size : (rank + 1) * len(shards) // size]

    def _my_share(self, peer: int) -> list[Shard]:
        return self._share(peer, self._groups.rank)

    def _compare_staged(self) -> tuple[np.ndarray[Any, Any], MPI.Request]:
        """Begin an allreduce of what the ranks have staged of each peer: the minimum, and the negated maximum."""
        staged = [reader.staged for reader in self._readers]
        shares = [self._my_share(reader.peer) for reader in self._readers]
        lowest = [version if share else NO_SHARE for version, share in zip(staged, shares, strict=True)]
        extremes = np.array([lowest, [-version for version in staged]], np.int64)
        return extremes, self._group_comm.Iallreduce(MPI.IN_PLACE, extremes, op=MPI.MIN)

    def _adopt(self, reader: Reader) -> Snapshot:
        whole = self._assemble(reader)
        strides = [shard.stride for shard in self._shards(reader.peer)]
        shards = torch.from_numpy(whole)[: sum(strides)].split(strides)
        return Snapshot(reader.peer, int(stamp_of(whole)[1]), [shard[STAMP_NBYTES:] for shard in shards])

    def _assemble(self, reader: Reader) -> Bytes:
        """Gather the ranks' shares of a snapshot; return all its shards in one array, in order."""
        if self._groups.size == 1:
            return reader.memory
        counts = [total_nbytes(self._share(reader.peer, rank)) for rank in range(self._groups.size)]
        self._group_comm.Allgatherv(reader.memory[: counts[self._groups.rank]], [self._whole, counts])
        return self._whole

    # Below: the communication thread.

    def _communicate(self) -> None:
        try:
            if self._payload.device.type == "cuda":
                torch.cuda.set_device(self._payload.device)  # a new thread would use GPU 0, and take memory there
            fetches = [reader.fetches() for reader in self._readers]
            announced = -math.inf
            while not self._closing.is_set():
                if self._writer.announce():
                    announced = time.monotonic()
                busy = False
                for reader, fetch in zip(self._readers, fetches, strict=True):
                    staged = reader.staged
                    busy |= next(fetch)
                    if reader.staged > staged:
                        self._log_fetch(reader)
                self._comm.Iprobe(source=MPI.ANY_SOURCE)  # makes MPI progress the reads of other ranks
                self.traffic.thread_seconds = time.thread_time()
                awake = time.monotonic() < announced + AWAKE_FOR_SECONDS
                time.sleep(BUSY_SECONDS if busy else AWAKE_SECONDS if awake else IDLE_SECONDS)
        except BaseException as error:
            end_job(error)

    def _log_fetch(self, reader: Reader) -> None:
        if nbytes := total_nbytes(self._my_share(reader.peer)):
            self._debug(f"fetched step {stamp_of(reader.memory)[1]} of group {reader.peer}, {nbytes} bytes")

    def _debug(self, message: str) -> None:
        logger.debug(f"group {self._groups.group}, rank {self._groups.rank}: {message}")


def _require_equal_payloads(groups: Groups, payload: Payload) -> None:
    digests = groups.world.allgather(payload.digest)
    if len(set(digests)) == 1:
        return
    facts = groups.world.allgather(payload.facts)
    other = next(rank for rank, digest in enumerate(digests) if digest != digests[0])
    theirs, mine = facts[other], facts[0]
    name = next(name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name))
    raise UserError(
        f"the groups publish different things: {difference(name, theirs.get(name), mine.get(name))} (there is group "
        f"{groups.group_of(other)}, here group 0); all groups must build the same model and use the same exchange.codec"
    )
