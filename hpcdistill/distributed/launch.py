"""Start and end of the job that this process may be a rank of."""

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
from typing import NoReturn

from hpcdistill.distributed.rendezvous import of_srun, of_torchrun
from hpcdistill.errors import UserError
from hpcdistill.output import print_error

# Set by Hydra, Open MPI and srun for each rank they start.
LAUNCHER_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
LAUNCHER_RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")
LAUNCHER_SIGNS = (*LAUNCHER_SIZES, "PMIX_RANK", "PALS_RANKID")
"""Variables that only a rank of a launcher has; a batch script of Slurm, which is one process, has none of them."""

START_SECONDS = 600.0
"""Time for all ranks to start MPI; thousands that load torch from one filesystem need minutes."""

ENDING_SECONDS = 30
"""Time for a process to report an error and end the job; then SIGALRM ends the process, even in a blocking call."""


def was_launched() -> bool:
    """Return whether this process is a rank that a launcher has started, or is in an MPI world of several ranks."""
    if _has_mpi():
        from mpi4py import MPI

        if MPI.COMM_WORLD.size > 1:
            return True
    return bool(of_torchrun()) or (_is_connected() and any(os.environ.get(name) for name in LAUNCHER_SIGNS))


def start_mpi() -> None:
    """Initialise MPI together with all other ranks, or end this process when they do not arrive in time.

    A watchdog bounds the wait; it works while MPI_Init keeps Python from running, and prints the process's stack. With
    srun --kill-on-bad-exit, and with mpirun, that ends the whole job.
    """
    faulthandler.dump_traceback_later(START_SECONDS, exit=True)
    try:
        from mpi4py import MPI  # noqa: F401
    finally:
        faulthandler.cancel_dump_traceback_later()


def end_job(error: BaseException, launched: bool = False) -> NoReturn:
    """Report an error and end this process; if it is one of several ranks, end all of them.

    If a rank only exited, the others would wait for it forever (MPI 4.1, Section 11.2.2), so MPI ends all of them.
    Without MPI, torchrun and srun --kill-on-bad-exit do so, and collective operations fail on the other ranks. The
    process ends even if the message cannot be printed or a call hangs.

    Args:
        error: the error.
        launched: True if this process was about to start communication with other ranks, which may wait for it. If
            they are ranks of MPI, it starts MPI now in order to end them.
    """
    status = 130 if isinstance(error, KeyboardInterrupt) else 2 if isinstance(error, UserError) else 1
    said = False
    if launched and not (of_torchrun() or _has_mpi() or _has_process_group()) and _is_one_of_several():
        if said := is_first_rank():
            print_error(_message(error))  # now: MPI may not start
        with suppress(ImportError, RuntimeError):  # no MPI library
            start_mpi()
    rank, size = _place(launched)
    if size > 1:
        signal.alarm(ENDING_SECONDS)
        try:
            if rank and isinstance(error, UserError):
                time.sleep(2)  # where all ranks have the same error, rank 0 reports it for all and ends the job
            if not said:
                print_error(f"[world rank {rank} of {size}] {_message(error)}")
            time.sleep(1)  # the launcher often loses messages of a job that ends at once
        finally:
            _abort(status)
    if not said:
        print_error(_message(error))
    if threading.current_thread() is not threading.main_thread():
        os._exit(status)  # sys.exit would end this thread only
    sys.exit(status)


def _place(launched: bool) -> tuple[int, int]:
    """Return the number of this process among the ranks that have to end together, and how many there are."""
    if _has_mpi():
        from mpi4py import MPI

        return MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size
    meeting = of_torchrun() or of_srun()
    return (meeting.rank, meeting.size) if meeting and (launched or _has_process_group()) else (0, 1)


def _has_process_group() -> bool:
    """Return whether this process communicates by torch.distributed."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and bool(distributed.is_initialized())


def _has_mpi() -> bool:
    """Return whether this process has started MPI, and has not left it again."""
    if "mpi4py.MPI" not in sys.modules:
        return False
    from mpi4py import MPI

    return MPI.Is_initialized() and not MPI.Is_finalized()


def _is_one_of_several() -> bool:
    """Return whether a launcher has started this process as one of several."""
    return _is_connected() and any(os.environ.get(name, "1") not in ("", "0", "1") for name in LAUNCHER_SIZES)


def _is_connected() -> bool:
    """Return False in a child of a rank: it inherits the launcher's variables, but not the connection to it."""
    if "PMI_FD" not in os.environ:
        return True
    try:
        return stat.S_ISSOCK(os.fstat(int(os.environ["PMI_FD"])).st_mode)
    except (OSError, ValueError):
        return False


def is_first_rank() -> bool:
    """Return whether this process may speak for all that a launcher has started: rank 0, or one without a launcher."""
    if meeting := of_torchrun():
        return meeting.rank == 0
    ranks = [os.environ[name] for name in LAUNCHER_RANKS if name in os.environ]
    return ranks[:1] in ([], ["0"])


def _abort(status: int) -> NoReturn:
    with suppress(OSError, ValueError, AttributeError):  # AttributeError: there is no standard output
        sys.stdout.flush()  # as neither MPI nor os._exit does
    try:
        if _has_mpi():
            from mpi4py import MPI

            MPI.COMM_WORLD.Abort(status)
    finally:
        os._exit(status)  # MPICH returns from Abort and leaves the killing to its launcher


def _message(error: BaseException) -> str:
    if isinstance(error, UserError):
        return f"hpcdistill: error: {error}"
    if isinstance(error, KeyboardInterrupt):
        return "hpcdistill: interrupted"
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return f"hpcdistill: error: {error}; this process may open {files}: allow more, as by ulimit -n 1024"
    return "".join(traceback.format_exception(error))
