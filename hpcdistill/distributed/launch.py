"""The job that this process may be a rank of: how it starts MPI, and how it ends."""

from __future__ import annotations

import errno
import faulthandler
import os
import resource
import signal
import stat
import sys
import threading
import time
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

from hpcdistill.errors import UserError
from hpcdistill.output import say

if TYPE_CHECKING:
    from mpi4py import MPI

# Set by Hydra, Open MPI and srun for each rank they start.
LAUNCHER_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
LAUNCHER_RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")

START_SECONDS = 600.0
"""For all ranks to start MPI; thousands that load torch from one filesystem need minutes."""

ENDING_SECONDS = 30
"""For a process to say why it ends the job, and to end it; then SIGALRM ends it, wherever it hangs."""


def start_mpi() -> None:
    """Initialise MPI together with all other ranks, or end this process when they do not come.

    The wait is bounded by a watchdog that works while MPI_Init keeps Python from running; it prints where the process
    stands. With srun --kill-on-bad-exit, and with mpirun, that ends the whole job.
    """
    faulthandler.dump_traceback_later(START_SECONDS, exit=True)
    from mpi4py import MPI  # noqa: F401

    faulthandler.cancel_dump_traceback_later()


def end_job(error: BaseException, launched: bool = False) -> NoReturn:
    """Say what went wrong and end this process; once it has started MPI, every process of the job.

    A rank that merely exited would leave the others waiting for it for ever (MPI 4.1, Section 11.2.2). Neither a
    message that cannot be printed nor anything that hangs keeps the process from ending.

    Args:
        error: what went wrong.
        launched: this process was about to start MPI; where it is one of several, which may wait for it, start MPI now
            in order to end them.
    """
    status = 130 if isinstance(error, KeyboardInterrupt) else 2 if isinstance(error, UserError) else 1
    said = False
    if launched and not _has_mpi() and _is_one_of_several():
        if said := _is_first():
            say(_message(error))  # now, for MPI may not start
        with suppress(ImportError, RuntimeError):  # there is no MPI library
            start_mpi()
    if _has_mpi():
        from mpi4py import MPI

        world = MPI.COMM_WORLD
        if world.size > 1:
            signal.alarm(ENDING_SECONDS)
            try:
                if world.rank and isinstance(error, UserError):
                    time.sleep(2)  # where all ranks have the same error, rank 0 says it for all and ends the job
                if not said:
                    say(f"[world rank {world.rank} of {world.size}] {_message(error)}")
                time.sleep(1)  # until the launcher has passed it on: killing the job at once, it often loses it
            finally:
                _abort(world, status)
    if not said:
        say(_message(error))
    if threading.current_thread() is not threading.main_thread():
        os._exit(status)  # sys.exit would end this thread only
    sys.exit(status)


def _has_mpi() -> bool:
    """Return whether this process has started MPI, and has not left it again."""
    if "mpi4py.MPI" not in sys.modules:
        return False
    from mpi4py import MPI

    return MPI.Is_initialized() and not MPI.Is_finalized()


def _is_one_of_several() -> bool:
    """Return whether a launcher has started this process as one of several.

    A child of a rank inherits the launcher's variables, but not the connection to it.
    """
    if "PMI_FD" in os.environ:
        try:
            if not stat.S_ISSOCK(os.fstat(int(os.environ["PMI_FD"])).st_mode):
                return False
        except (OSError, ValueError):
            return False
    return any(os.environ.get(name, "1") not in ("", "0", "1") for name in LAUNCHER_SIZES)


def _is_first() -> bool:
    """Return whether this is rank 0 of those started; it speaks for all that have the same error."""
    ranks = [os.environ[name] for name in LAUNCHER_RANKS if name in os.environ]
    return ranks[:1] == ["0"]


def _abort(world: MPI.Intracomm, status: int) -> NoReturn:
    try:
        world.Abort(status)
    finally:
        os._exit(status)  # MPICH returns from Abort and lets its launcher do the killing


def _message(error: BaseException) -> str:
    if isinstance(error, UserError):
        return f"hpcdistill: error: {error}"
    if isinstance(error, KeyboardInterrupt):
        return "hpcdistill: interrupted"
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return f"hpcdistill: error: {error}; this process may open {files}: allow more, as by ulimit -n 1024"
    return "".join(traceback.format_exception(error))
