"""Submits a run as one job for each group: a job array, whose elements depend on each other for nothing."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from hpcdistill.config import Config
from hpcdistill.errors import UserError

SCRIPT = Path("slurm/groups.sbatch")


def submit(
    config: Config, training: Sequence[str], nodes_per_group: int, ranks_per_node: int, options: Sequence[str]
) -> str:
    """Submit `SCRIPT` for all groups of `config`; the number of the array.

    Args:
        config: the run, as its jobs will read it.
        training: the arguments of `hpcdistill train`, without those that tell one group from another.
        nodes_per_group: nodes of each job.
        ranks_per_node: ranks on each node.
        options: more options of sbatch.

    Raises:
        UserError: this is not the root of the repository, there is no Slurm, or sbatch refuses.
    """
    if not SCRIPT.exists():
        raise UserError(f"no {SCRIPT} in {Path.cwd()}; submit in the root of the hpcdistill repository")
    command = [
        "sbatch",
        "--parsable",
        f"--array=0-{config.groups - 1}",
        f"--nodes={nodes_per_group}",
        f"--ntasks={nodes_per_group * ranks_per_node}",
        f"--ntasks-per-node={ranks_per_node}",
        *options,
        str(SCRIPT),
        *training,
    ]
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise UserError("there is no sbatch here; submit on a login node of the cluster") from None
    if result.returncode:
        raise UserError(f"sbatch has refused: {result.stderr.strip()}\nwhat was asked: {' '.join(command)}")
    return result.stdout.strip().partition(";")[0]
