"""Whether a rank that computes is read by others: what the exchange through windows relies on."""

from __future__ import annotations

import atexit
import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from mpi4py import MPI

from hpcdistill.errors import UserError
from hpcdistill.exchange.window.allocation import allocate_window
from hpcdistill.exchange.window.exchange import BUSY_SECONDS, IDLE_SECONDS

GETS = 10
GET_NBYTES = 1 << 16
GET_SECONDS = 10.0  # for all of them; one takes as long as a few looks of its target, 5 ms each


def place() -> str:
    """Which rank this is, and where."""
    return f"rank {MPI.COMM_WORLD.rank} on {os.uname().nodename}"


class WindowProbe:
    """Windows that are read as those of the exchange are: by a thread for MPI, while the main thread computes.

    First the readers read from rank 0, then rank 0 from them. Collective over the world.
    """

    def __init__(self, readers: list[int]) -> None:
        self._readers = readers
        self._comm = MPI.COMM_WORLD.Dup()
        self._places = self._comm.allgather(place())
        self._window = allocate_window(self._comm, GET_NBYTES)
        self._sent: list[MPI.Request] = []
        # Its own, and not of a round: a Get that is given up may still arrive.
        self._nothing, self._headers = np.empty(1, np.int64), np.empty((len(readers), 1), np.int64)
        self._memory = np.zeros((len(readers), GET_NBYTES), np.uint8)
        torch.frombuffer(self._window.tomemory(), dtype=torch.uint8).fill_(self._pattern(self._comm.rank))
        self._comm.Barrier()
        self._window.Lock_all(MPI.MODE_NOCHECK)
        self._window.Sync()
        self._comm.Barrier()

    def measure(self) -> float:
        """Seconds that the slowest of this rank's Gets took.

        Raises:
            UserError: one did not complete in time.
        """
        if self._comm.rank not in (0, *self._readers):
            return 0.0
        numbers = torch.rand(256, 256)
        with ThreadPoolExecutor(1) as executor:
            seconds = executor.submit(self._read_and_serve)
            while not seconds.done():
                numbers @ numbers
            return seconds.result()

    def close(self, leave: bool) -> None:
        """Free the windows, or `leave` them where Gets may still be under way.

        Over those MPI_Finalize may wait for ever: the process will end without it.
        """
        if leave:
            atexit.register(self._end_job)
            return
        MPI.Request.Waitall(self._sent)
        self._window.Unlock_all()
        self._comm.Barrier()
        self._window.Free()
        self._comm.Free()

    def _end_job(self) -> None:
        time.sleep(1)  # until the launcher has passed on what doctor said
        self._comm.Abort(1)
        os._exit(1)  # MPICH returns from Abort and lets its launcher do the killing

    # Below: the communication thread.

    def _read_and_serve(self) -> float:
        if self._comm.rank > 0:
            try:
                return self._read([0])
            finally:
                self._tell([0])
                self._serve(1, 4 * GET_SECONDS)  # rank 0 may need half of it until it has heard of all
        try:
            self._serve(len(self._readers), 2 * GET_SECONDS)
            return self._read(self._readers)
        finally:
            self._tell(self._readers)

    def _serve(self, count: int, seconds: float) -> None:
        """Look at MPI as the exchange's idle thread does, until `count` ranks have told that they have read."""
        end = time.monotonic() + seconds
        while count:
            if self._comm.Iprobe(source=MPI.ANY_SOURCE):
                self._comm.recv()
                count -= 1
            elif time.monotonic() > end:
                raise UserError(f"{count} ranks have not told in {seconds:.0f} s that they have read from here")
            else:
                time.sleep(IDLE_SECONDS)

    def _tell(self, ranks: list[int]) -> None:
        self._sent += [self._comm.isend(None, rank) for rank in ranks]

    def _read(self, targets: list[int]) -> float:
        end = time.monotonic() + GET_SECONDS
        return max(self._round(targets, end) for _ in range(GETS))

    def _round(self, targets: list[int], end: float) -> float:
        """Seconds until a header and some bytes of each target are here; the requests are those of `Reader`."""
        begin = time.monotonic()
        pending = {}
        for target, header, memory in zip(targets, self._headers, self._memory, strict=False):
            fetch = self._window.Rget_accumulate(self._nothing, header, target, op=MPI.NO_OP)
            pending[target] = [fetch, self._window.Rget(memory, target)]
        while pending := {rank: requests for rank, requests in pending.items() if not MPI.Request.Testall(requests)}:
            if time.monotonic() > end:
                raise UserError(
                    f"a Get from {self._places[next(iter(pending))]}, which computes, has not completed in "
                    f"{GET_SECONDS:g} s"
                )
            time.sleep(BUSY_SECONDS)
        self._require_patterns(targets)
        return time.monotonic() - begin

    def _require_patterns(self, targets: list[int]) -> None:
        for target, memory in zip(targets, self._memory, strict=False):
            if (memory != self._pattern(target)).any():
                raise UserError(f"a Get from {self._places[target]} brought other bytes than are there")

    def _pattern(self, rank: int) -> int:
        return 1 + rank % 255
