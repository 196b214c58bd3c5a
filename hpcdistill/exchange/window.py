"""Snapshots through MPI one-sided windows: the writer never waits for a reader, nor a reader for a writer.

Every rank owns one window with a header, the 64-bit number of its newest complete version, and `SLOTS` slots.
Version v lives in slot v % SLOTS. Rank r of a group publishes shard r of the group's snapshot and fetches shard
r of each peer's; a group adopts a snapshot when all its ranks hold the same version of it.

Why a torn slot is never delivered. A reader takes the header (v), the slot, then the header again (w), and
accepts only if w − v ≤ SLOTS − 2. One writer makes headers monotone, and header accesses are element-wise atomic
(MPI 4.1, Section 12.7.1). The slot is not too old: its stores were synchronised before header v was set.
It is not too new: the first store of version v + SLOTS, the next in that slot, begins only after header
v + SLOTS − 1 was set and flushed; had the reader seen one such byte, its second look would have found
w ≥ v + SLOTS − 1, and rejected it.

Assumed of MPI: the unified memory model (public and private copy of a window are one, Section 12.4) and
MPI_THREAD_MULTIPLE. Both are checked; without them the constructor refuses.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from mpi4py import MPI
from torch import nn

from hpcdistill.errors import UserError
from hpcdistill.exchange import Exchange
from hpcdistill.groups import Groups, end_job
from hpcdistill.snapshot import ALIGNMENT, Layout

SHARED_MEMORY = "/dev/shm"
"""Where MPI keeps windows that the ranks of a node can reach."""

SLOTS = 3
"""The fewest with which a read shorter than one publish interval never has to be repeated."""

HEADER_NBYTES = 4096  # a page of its own, away from the bulk traffic
STAMP_NBYTES = ALIGNMENT  # in front of each slot: version and step
CHUNK_NBYTES = 1 << 30  # one Rget moves at most this, well below what 32-bit counts can express
IDLE_SECONDS = 5e-3  # between two looks when nothing is under way: about 1 % of a core
BUSY_SECONDS = 1e-4  # while bytes travel; no pause at all would fight the training thread for MPI's lock


@dataclass
class _Reader:
    """What this rank knows of its shard of one peer.

    The communication thread fills `staged`, the training thread empties it: while it is set, `slot` holds still.
    """

    peer: int
    target: int  # world rank that owns the shard
    slot: np.ndarray[Any, Any]  # uint8 [STAMP_NBYTES + shard]
    seen: int = 0  # version staged last
    staged: int = 0  # version that waits for adoption, 0 for none
    fetched: int = 0
    retries: int = 0
    header: np.ndarray[Any, Any] = field(default_factory=lambda: np.zeros(1, np.int64))

    @property
    def stamp(self) -> np.ndarray[Any, Any]:
        """[version, step] that travelled with the shard."""
        return self.slot[:16].view(np.int64)


class WindowExchange(Exchange):
    """The `Exchange` inside one MPI world.

    All one-sided calls are made by one communication thread per rank, which also keeps MPI progressing, so that
    a rank busy computing still serves its readers. The training thread only copies.

    Args:
        groups: who is who; groups of equal size.
        model: whose parameters and buffers are published, always from the same memory.
        layout: the model's.
        peers: the groups whose snapshots this one fetches.

    Raises:
        UserError: the groups' models differ, windows are not unified, or a node cannot hold them; on every rank.
    """

    def __init__(self, groups: Groups, model: nn.Module, layout: Layout, peers: list[int]) -> None:
        _require_equal_models(groups, layout)
        self._comm = groups.world.Dup()
        self._group_comm = groups.comm.Dup()
        begin, end = layout.shard(groups.rank, groups.size)
        self._shard_nbytes = layout.shard_nbytes(groups.size)
        self._stride = STAMP_NBYTES + self._shard_nbytes
        self._window = _allocate(self._comm, HEADER_NBYTES + SLOTS * self._stride)
        memory = torch.frombuffer(self._window.tomemory(), dtype=torch.uint8)
        memory.zero_()
        self._sources = layout.slices(model, begin, end)
        self._stamps, self._slots = [], []
        for slot in range(SLOTS):
            offset = HEADER_NBYTES + slot * self._stride
            self._stamps.append(memory[offset : offset + 16].view(torch.int64))
            shard = memory[offset + STAMP_NBYTES :][: end - begin]
            self._slots.append(layout.views(shard, begin, end))
        self._whole = torch.zeros(groups.size * self._shard_nbytes, dtype=torch.uint8)
        self._readers = [
            _Reader(peer, peer * groups.size + groups.rank, np.zeros(self._stride, np.uint8)) for peer in peers
        ]
        self._agreement: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], MPI.Request] | None = None
        self._offered = self._published = 0  # versions: copied into a slot / visible to peers
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._communicate, name="exchange", daemon=True)
        self._open()

    def publish(self, step: int) -> bool:
        """See `Exchange.publish`. Costs a small allreduce and one copy of this rank's shard."""
        # All ranks or none: one that skipped alone would number its later shards differently from its neighbours.
        if not self._group_comm.allreduce(self._published == self._offered, op=MPI.LAND):
            return False
        version = self._offered + 1
        torch._foreach_copy_(self._slots[version % SLOTS], self._sources)
        self._stamps[version % SLOTS].copy_(torch.tensor([version, step]))
        self._offered = version
        return True

    def collect(self) -> Iterator[tuple[int, int, torch.Tensor]]:
        """See `Exchange.collect`. Costs an allgather for each snapshot adopted.

        What the ranks have staged is compared by a small allreduce that has until the next call to complete: waited
        for at once, it would make each step as slow as the group's latest rank once more.
        """
        if self._agreement:
            staged, extremes, request = self._agreement
            request.Wait()
            lowest, highest = np.split(extremes, 2)
            for reader, version, low, high in zip(self._readers, staged, lowest, -highest, strict=True):
                if 0 < low == high:
                    yield self._adopt(reader)
                    reader.staged = 0
                elif 0 < version < high:
                    reader.staged = 0  # another rank holds a newer one: fetch again
        self._agreement = self._compare_staged()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Free the window once all groups have finished; after an exception only stop communicating.

        Until then this rank goes on serving its readers. After an exception the job is about to be aborted, and
        a collective call could wait for a rank that will never make it.
        """
        if kind is None:
            if self._agreement:
                self._agreement[2].Wait()
            finished = self._comm.Ibarrier()
            while not finished.Test():
                time.sleep(IDLE_SECONDS)
        self._closing.set()
        self._thread.join()
        if kind is None:
            self._free()

    def _open(self) -> None:
        self._comm.Barrier()
        self._window.Lock_all(MPI.MODE_NOCHECK)
        self._window.Sync()
        self._comm.Barrier()
        self._thread.start()

    def _free(self) -> None:
        self._slots, self._stamps = [], []  # views into the window's memory must not outlive it
        self._window.Unlock_all()
        self._comm.Barrier()
        self._window.Free()
        self._group_comm.Free()
        self._comm.Free()

    def _compare_staged(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], MPI.Request]:
        """What this rank has staged of each peer, and the group's lowest and (negated) highest, once complete."""
        staged = np.array([reader.staged for reader in self._readers], np.int64)
        extremes = np.concatenate([staged, -staged])
        return staged, extremes, self._group_comm.Iallreduce(MPI.IN_PLACE, extremes, op=MPI.MIN)

    def _adopt(self, reader: _Reader) -> tuple[int, int, torch.Tensor]:
        step = int(reader.stamp[1])
        self._group_comm.Allgather(reader.slot[STAMP_NBYTES:], self._whole.numpy())
        return reader.peer, step, self._whole

    # Below: the communication thread.

    def _communicate(self) -> None:
        try:
            fetches = [self._fetch(reader) for reader in self._readers]
            while not self._closing.is_set():
                busy = self._announce()
                for fetch in fetches:
                    busy |= next(fetch)
                self._comm.Iprobe(source=MPI.ANY_SOURCE)  # lets MPI progress what others ask of this rank
                time.sleep(BUSY_SECONDS if busy else IDLE_SECONDS)
        except BaseException as error:
            end_job(error)

    def _announce(self) -> bool:
        """Make the version that the training thread has offered visible to peers."""
        version = self._offered
        if version == self._published:
            return False
        me = self._comm.rank
        self._window.Sync()
        self._window.Fetch_and_op(np.array([version], np.int64), np.empty(1, np.int64), me, 0, MPI.REPLACE)
        self._window.Flush(me)
        self._window.Sync()
        self._published = version
        return True

    def _fetch(self, reader: _Reader) -> Generator[bool, None, None]:
        """Fetch one peer's newest shard again and again; yields, for ever, whether bytes are under way."""
        while True:
            if reader.staged:
                yield False
                continue
            before = yield from self._read_header(reader)
            if before <= reader.seen:
                yield False
                continue
            yield from self._read_slot(reader, before % SLOTS)
            after = yield from self._read_header(reader)
            if after - before <= SLOTS - 2 and reader.stamp[0] == before:
                reader.seen = reader.staged = before
                reader.fetched += 1
            else:
                reader.retries += 1

    def _read_header(self, reader: _Reader) -> Generator[bool, None, int]:
        nothing = np.empty(1, np.int64)
        yield from _completion([self._window.Rget_accumulate(nothing, reader.header, reader.target, op=MPI.NO_OP)])
        return int(reader.header[0])

    def _read_slot(self, reader: _Reader, slot: int) -> Generator[bool, None, None]:
        offset = HEADER_NBYTES + slot * self._stride
        requests = []
        for begin in range(0, self._stride, CHUNK_NBYTES):
            chunk = reader.slot[begin : begin + CHUNK_NBYTES]
            requests.append(self._window.Rget(chunk, reader.target, (offset + begin, chunk.nbytes, MPI.BYTE)))
        yield from _completion(requests)


def _completion(requests: list[MPI.Request]) -> Generator[bool, None, None]:
    """Yield True until all requests are complete."""
    while not MPI.Request.Testall(requests):
        yield True


def _allocate(comm: MPI.Intracomm, nbytes: int) -> MPI.Win:
    _require_shared_memory(comm, nbytes)
    # Allocate, not Create: a Get on a created window blocks until its target calls MPI.
    window = MPI.Win.Allocate(nbytes, 1, comm=comm)
    if window.Get_attr(MPI.WIN_MODEL) != MPI.WIN_UNIFIED:
        raise UserError(
            f"{MPI.get_vendor()[0]} offers windows of the separate memory model here, the exchange needs the "
            "unified one; use an MPI with MPI_WIN_UNIFIED windows (MPICH and Open MPI 5 have them)"
        )
    return window


def _require_shared_memory(comm: MPI.Intracomm, nbytes: int) -> None:
    """Refuse windows that the node cannot hold: MPI would only find out by dying of SIGBUS as they are written to."""
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    ranks = node.size
    needed = node.allreduce(nbytes) if ranks > 1 else 0  # alone on a node, a rank's window is memory of its own
    node.Free()
    free = shutil.disk_usage(SHARED_MEMORY).free
    shortages = [shortage for shortage in comm.allgather((free - needed, needed, ranks)) if shortage[0] < 0]
    if shortages:
        missing, needed, ranks = min(shortages)
        raise UserError(
            f"the exchange's windows of the {ranks} ranks on a node take {needed / 2**20:.0f} MiB of {SHARED_MEMORY}, "
            f"which has {(needed + missing) / 2**20:.0f} MiB free; enlarge it "
            f"(mount -o remount,size=4G {SHARED_MEMORY}, or docker run --shm-size=4g) or start fewer ranks on a node"
        )


def _require_equal_models(groups: Groups, layout: Layout) -> None:
    digests = groups.world.allgather(layout.digest)
    if len(set(digests)) == 1:
        return
    layouts = groups.world.allgather(layout)
    other = next(rank for rank, digest in enumerate(digests) if digest != digests[0])
    raise UserError(
        f"the groups' models differ: group 0 against group {other // groups.size}: "
        f"{layouts[0].difference(layouts[other])}; all groups must build the same model"
    )
