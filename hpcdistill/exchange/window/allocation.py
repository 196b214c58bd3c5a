"""Allocation of one-sided windows, and the errors of machines that cannot hold them."""

from __future__ import annotations

import shutil

from mpi4py import MPI

from hpcdistill.errors import UserError

SHARED_MEMORY = "/dev/shm"
"""Filesystem in which MPI keeps the windows that ranks of a node share."""


def allocate_window(comm: MPI.Intracomm, nbytes: int) -> MPI.Win:
    """Allocate a window of `nbytes` bytes on this rank. Collective over `comm`.

    Raises:
        UserError: a node cannot hold its ranks' windows, or windows are not of the unified memory model (MPI 4.1,
            Section 12.4): a store by the owner could then stay invisible to readers.
    """
    _require_shared_memory(comm, nbytes)
    try:
        # Allocate, not Create: a Get on a created window blocks until its target calls MPI.
        window = MPI.Win.Allocate(nbytes, 1, comm=comm)
    except (MPI.Exception, MemoryError) as error:
        raise UserError(
            f"MPI cannot allocate a window of {nbytes / 2**20:.0f} MiB on world rank {MPI.COMM_WORLD.rank}: {error}; "
            "give the job more memory (sbatch --mem), a smaller exchange.codec, or more ranks per group to share it"
        ) from None
    if window.Get_attr(MPI.WIN_MODEL) != MPI.WIN_UNIFIED:
        raise UserError(
            f"{MPI.get_vendor()[0]} offers windows of the separate memory model here, the exchange needs the "
            "unified one; use an MPI with MPI_WIN_UNIFIED windows (MPICH and Open MPI 5 have them)"
        )
    return window


def _require_shared_memory(comm: MPI.Intracomm, nbytes: int) -> None:
    """Refuse windows that the node cannot hold: MPI would die of SIGBUS when they are first written to."""
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    ranks = node.size
    needed = node.allreduce(nbytes) if ranks > 1 else 0  # a rank alone on its node has its window in private memory
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
