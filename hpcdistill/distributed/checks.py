"""Checks of the world before ranks work together."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from typing import TYPE_CHECKING, Any, cast

from hpcdistill.errors import UserError

if TYPE_CHECKING:
    from mpi4py import MPI

    from hpcdistill.distributed.communicator import Communicator


def require_same_settings(world: Communicator, settings: dict[str, Any]) -> None:
    """Refuse ranks with different settings, which would wait for each other forever.

    Collective over `world`; the first collective operation of a run.

    Args:
        world: all ranks.
        settings: this rank's settings by name; values that JSON can express.

    Raises:
        UserError: a setting differs; it names the first one and both values; on every rank.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).digest()
    if len(set(world.allgather(digest))) == 1:
        return
    first, *others = world.allgather(settings)
    for rank, other in enumerate(others, start=1):
        for name in sorted({*first, *other}):
            mine, theirs = (each.get(name, "not set") for each in (first, other))
            if mine != theirs:
                raise UserError(
                    f"{name} differs between ranks: {mine} on world rank 0, {theirs} on rank {rank}; give all ranks "
                    "the same options and configuration file, or make each group a job of its own (--group)"
                )


def require_one_world() -> None:
    """Check that tasks started by one srun share an MPI world.

    Raises:
        UserError: each task sees a world of one rank.
    """
    from mpi4py import MPI

    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if MPI.COMM_WORLD.size == 1 and tasks > 1:
        raise UserError(
            f"srun started {tasks} tasks but each sees an MPI world of one rank: the PMI plugin does not fit this "
            "MPI; use srun --mpi=pmi2 for MPICH, --mpi=pmix for Open MPI, or start with mpirun"
        )


def is_of_mpi(comm: Communicator) -> bool:
    """Return whether a communicator is one of MPI."""
    mpi = sys.modules.get("mpi4py.MPI")
    return mpi is not None and isinstance(comm, mpi.Comm)


def require_mpi(comm: Communicator, setting: str) -> MPI.Intracomm:
    """Return a communicator as that of MPI which it is.

    Args:
        comm: the communicator.
        setting: what needs MPI, such as `exchange.transport = window`.

    Raises:
        UserError: it is not a communicator of MPI.
    """
    if not is_of_mpi(comm):
        raise UserError(
            f"{setting} needs MPI, but these ranks work together without it; set --exchange.transport=files "
            "--gradients=torch, or install mpi4py and start with mpirun"
        )
    return cast("MPI.Intracomm", comm)


def require_thread_multiple() -> None:
    """Check that several threads may call MPI at once.

    Raises:
        UserError: MPI grants a lower thread level.
    """
    from mpi4py import MPI

    if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        raise UserError(
            "MPI does not grant MPI_THREAD_MULTIPLE, which Horovod beside one-sided windows needs; unset "
            f"MPI4PY_RC_THREAD_LEVEL (now {os.environ.get('MPI4PY_RC_THREAD_LEVEL', 'unset')}) or use an MPI built "
            "with thread support"
        )
