"""Addresses at which ranks without MPI meet, from the environment that torchrun or srun gives them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Rendezvous:
    """Number of this process among the ranks of a job, and the address at which they meet."""

    rank: int
    size: int
    address: str
    """Host and port, as host:port."""


def of_torchrun() -> Rendezvous | None:
    """Return the rendezvous of a process that torchrun, or a launcher with its variables, has started; else None."""
    environment = os.environ
    if not all(environment.get(name) for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")):
        return None
    address = f"{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}"
    return Rendezvous(int(environment["RANK"]), int(environment["WORLD_SIZE"]), address)


def of_srun() -> Rendezvous | None:
    """Return the rendezvous of a task that srun has started; else None.

    The tasks meet on the first node of the step, at a port between 15000 and 29999 that depends on job and step.
    MASTER_ADDR and MASTER_PORT in the environment, the same for all tasks, take the place of both.
    """
    environment = os.environ
    if not environment.get("SLURM_STEP_NUM_TASKS"):
        return None
    host = environment.get("MASTER_ADDR") or _first_node(environment["SLURM_STEP_NODELIST"])
    # Below the ports that Linux gives to outgoing connections; neighbouring jobs and steps get others.
    port = 15000 + (31 * int(environment["SLURM_JOB_ID"]) + int(environment["SLURM_STEP_ID"])) % 15000
    return Rendezvous(
        int(environment["SLURM_PROCID"]),
        int(environment["SLURM_STEP_NUM_TASKS"]),
        f"{host}:{environment.get('MASTER_PORT') or port}",
    )


def _first_node(nodes: str) -> str:
    """Return the first name in a list of Slurm, such as n07 in n[07-09,12],login1."""
    first = re.match(r"(?:[^,\[]|\[[^]]*\])*", nodes)
    return re.sub(r"\[([^],-]*)[^]]*\]", r"\1", first[0] if first else nodes)
