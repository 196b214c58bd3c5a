"""Submits a run as one job for each group: a job array, whose elements depend on each other for nothing."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from hpcdistill.config.paths import expanded
from hpcdistill.config.schema import Config
from hpcdistill.errors import UserError

SCRIPT = "groups.sbatch"


def submit(config: Config, training: Sequence[str], nodes_per_group: int, ranks_per_node: int, options: str) -> str:
    """Submit `SCRIPT` for all groups of `config`, to run in this folder; return the number of the array.

    Args:
        config: the run, as its jobs will read it.
        training: the arguments of `hpcdistill train`, without those that tell one group from another.
        nodes_per_group: nodes of each job, > 0.
        ranks_per_node: ranks on each node, > 0.
        options: more options of sbatch, quoted as for a shell.

    Raises:
        UserError: there are no scripts or there is no Slurm, sbatch refuses, or the options do not fit each other.
    """
    ranks = nodes_per_group * ranks_per_node
    if config.group_sizes and set(config.group_sizes) != {ranks}:
        raise UserError(
            f"group_sizes = {','.join(map(str, config.group_sizes))}, but each job gets {ranks} ranks, from "
            f"--nodes-per-group={nodes_per_group} and --ranks-per-node={ranks_per_node}; leave group_sizes out"
        )
    command = [
        "sbatch",
        "--parsable",
        f"--array=0-{config.groups - 1}",
        f"--nodes={nodes_per_group}",
        f"--ntasks={ranks}",
        f"--ntasks-per-node={ranks_per_node}",
        *_split(options),
        str(scripts() / SCRIPT),
        *training,
    ]
    # For a job to find this Python, wherever it is installed.
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    try:
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
    except FileNotFoundError:
        raise UserError("there is no sbatch here; submit on a login node of the cluster") from None
    if result.returncode:
        raise UserError(f"sbatch has refused: {result.stderr.strip()}\nwhat was asked: {shlex.join(command)}")
    return result.stdout.strip().partition(";")[0]


def scripts() -> Path:
    """Return the folder of the Slurm scripts: $HPCDISTILL_SLURM, else ./slurm, else that of this package.

    Raises:
        UserError: $HPCDISTILL_SLURM is set, but has no scripts.
    """
    chosen = os.environ.get("HPCDISTILL_SLURM")
    places = [expanded(chosen)] if chosen else [Path("slurm"), Path(__file__).with_name("slurm")]
    for place in places:
        if (place / SCRIPT).exists():
            return place.resolve()
    raise UserError(f"no {SCRIPT} in {places[-1]}; let HPCDISTILL_SLURM name a copy of {Path(__file__).parent}/slurm")


def _split(options: str) -> list[str]:
    try:
        words = shlex.split(options)
    except ValueError as error:
        raise UserError(f"--sbatch={options!r}: {str(error).lower()}; close each quote that is opened there") from None
    for word in words:
        if re.match(r"(--array|-a|--wrap)\b", word):
            raise UserError(
                f"--sbatch={options!r} has {word}, which would be another job; submit makes one for each group"
            )
    return words
