"""Nodes of a job: which ranks share one, and its cores."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hpcdistill.distributed.communicator import Communicator


def node_name() -> tuple[str, str]:
    """Return what is the same for all processes of a node only; containers may share a name."""
    return os.uname().nodename, Path("/proc/sys/kernel/random/boot_id").read_text()


def ranks_and_cores(world: Communicator) -> tuple[int, int]:
    """Return the number of ranks on this rank's node, and of the cores that they may use together.

    Collective over the world.
    """
    nodes = world.allgather((node_name(), os.sched_getaffinity(0)))
    here = [cores for name, cores in nodes if name == node_name()]
    return len(here), len(set().union(*here))
