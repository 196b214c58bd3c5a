"""Check that a rank's window can be read while that rank computes, as the exchange relies on."""

from __future__ import annotations

from mpi4py import MPI

from hpcdistill.doctor.ask_all import ask_all, have_failed, slowest, summarize
from hpcdistill.doctor.check import Check, Result, Status
from hpcdistill.doctor.window_probe import WindowProbe

REMEDY = (
    "source tools/env.sh; name the network between nodes (FI_TCP_IFACE for MPICH, OMPI_MCA_btl_tcp_if_include for "
    "Open MPI); or train with --exchange.transport=files"
)


def check_window_progress() -> Result:
    """Check that a Get completes while its target computes, and calls MPI in the exchange's thread only. Collective."""
    readers, nodes = _readers()
    if not readers:
        return Result(Status.OK, "one rank only: no other rank reads from it")
    probe = WindowProbe(readers)
    answers = ask_all(probe.measure)
    probe.close(leave=have_failed(answers))
    where = f"between {nodes} nodes" if nodes > 1 else "one node only: not tested between nodes"
    return summarize(answers, f"Gets from ranks that compute: {slowest(answers)}; {where}", REMEDY)


def _readers() -> tuple[list[int], int]:
    """Choose the ranks that read from rank 0 and are read by it, one of each other node; also count the nodes."""
    node = MPI.COMM_WORLD.Split_type(MPI.COMM_TYPE_SHARED)
    first_ranks = sorted(set(MPI.COMM_WORLD.allgather(node.bcast(MPI.COMM_WORLD.rank))))
    node.Free()
    return first_ranks[1:] or list(range(1, MPI.COMM_WORLD.size))[:1], len(first_ranks)


CHECK: Check = ("window progress", check_window_progress, REMEDY)
