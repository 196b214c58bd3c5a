"""Windows that are read as the exchange reads them, while their ranks compute."""

from __future__ import annotations

import atexit
import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from mpi4py import MPI

from hpcdistill.doctor.ask_all import place
from hpcdistill.errors import UserError
from hpcdistill.exchange.window.allocation import allocate_window
from hpcdistill.exchange.window.exchange import BUSY_SECONDS, IDLE_SECONDS

GETS = 10
GET_NBYTES = 1 << 16
GET_SECONDS = 10.0  # for all of them; one takes a few of its target's calls of MPI, which are 5 ms apart


class WindowProbe:
    """Windows that a communication thread reads while the main thread computes; collective over the world.

    First the readers read from rank 0, then rank 0 reads from them.

    Args:
        readers: ranks other than 0.
    """

    def __init__(self, readers: list[int]) -> None:
        self._readers = readers
        self._comm = MPI.COMM_WORLD.Dup()
        self._places = self._comm.allgather(place())
        self._window = allocate_window(self._comm, GET_NBYTES)
        self._sent: list[MPI.Request] = []
        # These buffers live as long as the probe: a Get that was given up may still arrive.
        self._empty, self._headers = np.empty(1, np.int64), np.empty((len(readers), 1), np.int64)
        self._memory = np.zeros((len(readers), GET_NBYTES), np.uint8)
        torch.frombuffer(self._window.tomemory(), dtype=torch.uint8).fill_(self._pattern(self._comm.rank))
        self._comm.Barrier()
        self._window.Lock_all(MPI.MODE_NOCHECK)
        self._window.Sync()
        self._comm.Barrier()

    def measure(self) -> float:
        """Return the seconds of the slowest of this rank's Gets; 0 on a rank that takes no part.

        Raises:
            UserError: a Get did not complete in time, or brought wrong bytes.
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
        """Free the windows.

        Args:
            leave: Gets may still be under way, for which MPI_Finalize may wait forever: keep the windows, and have the
                process end without it.
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
        time.sleep(1)  # until the launcher has passed on what doctor printed
        self._comm.Abort(1)
        os._exit(1)  # MPICH returns from Abort and lets its launcher do the killing

    # Below: the communication thread.

    def _read_and_serve(self) -> float:
        if self._comm.rank > 0:
            try:
                return self._read([0])
            finally:
                self._notify([0])
                self._serve(1, 4 * GET_SECONDS)  # rank 0 may need half of it until all have notified it
        try:
            self._serve(len(self._readers), 2 * GET_SECONDS)
            return self._read(self._readers)
        finally:
            self._notify(self._readers)

    def _serve(self, count: int, seconds: float) -> None:
        """Call MPI as often as the exchange's idle thread does, until `count` ranks have notified that they have read.

        Raises:
            UserError: they have not within `seconds`.
        """
        end = time.monotonic() + seconds
        while count:
            if self._comm.Iprobe(source=MPI.ANY_SOURCE):
                self._comm.recv()
                count -= 1
            elif time.monotonic() > end:
                raise UserError(f"{count} ranks have not notified in {seconds:.0f} s that they have read from here")
            else:
                time.sleep(IDLE_SECONDS)

    def _notify(self, ranks: list[int]) -> None:
        self._sent += [self._comm.isend(None, rank) for rank in ranks]

    def _read(self, targets: list[int]) -> float:
        end = time.monotonic() + GET_SECONDS
        return max(self._round(targets, end) for _ in range(GETS))

    def _round(self, targets: list[int], end: float) -> float:
        """Read a header and some bytes of each target, with the requests that `Reader` uses; return the seconds."""
        begin = time.monotonic()
        pending = {}
        for target, header, memory in zip(targets, self._headers, self._memory, strict=False):
            fetch = self._window.Rget_accumulate(self._empty, header, target, op=MPI.NO_OP)
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
