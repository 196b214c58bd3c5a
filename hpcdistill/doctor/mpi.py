"""Checks of MPI, which connects the ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpcdistill.distributed.checks import require_one_world, require_thread_multiple
from hpcdistill.distributed.world import start_world
from hpcdistill.doctor.check import SETUP, Check, Result, Status

if TYPE_CHECKING:
    from hpcdistill.distributed.communicator import Communicator


WITHOUT = f"{SETUP}, after loading the MPI module; or train with --exchange.transport=files --gradients=torch"


def has_mpi() -> bool:
    """Return whether mpi4py finds an MPI library."""
    try:
        from mpi4py import MPI  # noqa: F401
    except (ImportError, RuntimeError):
        return False
    return True


def world() -> Communicator:
    """Return the communicator of all ranks: MPI's, or another one where there is no MPI.

    Raises:
        UserError: without MPI, the ranks cannot find each other.
    """
    if not has_mpi():
        return start_world()
    from mpi4py import MPI

    return MPI.COMM_WORLD


def check_world() -> Result:
    """Check that all ranks that were started are in one world. Optional: some ways of training need no MPI."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        return Result(Status.OPTIONAL, str(error).partition("\n")[0], WITHOUT)
    require_one_world()
    name, version = MPI.get_vendor()
    return Result(Status.OK, f"{name} {'.'.join(map(str, version))}, world of {MPI.COMM_WORLD.size}")


def check_threads() -> Result:
    """Check that threads may call MPI at the same time: Horovod's and the exchange's do."""
    require_thread_multiple()
    return Result(Status.OK, "MPI_THREAD_MULTIPLE")


def check_windows() -> Result:
    """Check what the exchange needs of windows: the unified memory model, and atomic operations on a header."""
    import numpy as np
    from mpi4py import MPI

    window = MPI.Win.Allocate(8, 8, comm=MPI.COMM_WORLD)
    try:
        if window.Get_attr(MPI.WIN_MODEL) != MPI.WIN_UNIFIED:
            return Result(
                Status.FAIL, "MPI_WIN_MODEL is not MPI_WIN_UNIFIED", "choose another MPI: MPI=mpich make setup"
            )
        rank = MPI.COMM_WORLD.rank
        written, before, after = (np.array([value], np.int64) for value in (42, -1, -1))
        window.Lock(rank)
        window.Fetch_and_op(written, before, rank, op=MPI.REPLACE)
        window.Flush(rank)
        window.Fetch_and_op(written, after, rank, op=MPI.NO_OP)
        window.Unlock(rank)
        assert after[0] == 42, f"wrote 42 with Fetch_and_op, read {after[0]}"
    finally:
        window.Free()
    return Result(Status.OK, "MPI_WIN_UNIFIED, Fetch_and_op round trip")


WORLD: Check = ("MPI", check_world, f"{SETUP}; on a cluster load the MPI module first")
CHECKS: list[Check] = [
    ("MPI threads", check_threads, SETUP),
    ("MPI windows", check_windows, "MPI=mpich make setup"),
]
"""Checks where there is an MPI."""
