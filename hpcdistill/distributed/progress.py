"""Progress of MPI while a rank waits outside of it."""

from __future__ import annotations

import atexit
import threading
from functools import cache

POLL_SECONDS = 0.002
"""Time between two calls of MPI."""


@cache
def keep_mpi_going() -> None:
    """Start a thread that calls MPI now and then, until Python ends; once per process.

    Between nodes, MPI may deliver the last message of a finished call only during a later call. A rank that waits for
    another one by other means would then keep it waiting. Horovod's thread makes such calls as well.
    """
    from mpi4py import MPI

    ended = threading.Event()

    def poll() -> None:
        while not ended.wait(POLL_SECONDS):
            MPI.COMM_WORLD.Iprobe()

    def stop() -> None:
        ended.set()
        thread.join()

    thread = threading.Thread(target=poll, name="mpi-progress", daemon=True)
    thread.start()
    atexit.register(stop)  # before MPI_Finalize, which mpi4py has registered earlier
