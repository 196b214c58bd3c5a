"""The command `submit`: one Slurm job for each group of a run, as an array of jobs that do not depend on each other."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from hpcdistill.cli import train
from hpcdistill.cli.parser import Parser, Subparsers, positive_int, require_known
from hpcdistill.config.load import load_config
from hpcdistill.config.paths import expanded
from hpcdistill.config.schema import Config
from hpcdistill.errors import UserError

SCRIPT = "groups.sbatch"
PACKAGED = Path(__file__).parents[1] / "slurm"
SET_BY_SCRIPT = ("--exchange.transport=files", "--group=0")
"""Arguments of training that `slurm/groups.sbatch` adds, with the number of each group."""


def add_parser(commands: Subparsers) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "submit",
        help="submit each group to Slurm as a job of its own",
        usage="%(prog)s [-h] [--nodes-per-group N] [--ranks-per-node N] [--sbatch OPTIONS] CONFIG.toml [OPTION ...]",
        description="Submit a Slurm job array with one element for each group. Jobs run in the current folder. Options "
        "other than those below are passed on to train. The batch script is groups.sbatch in $HPCDISTILL_SLURM, else "
        "in ./slurm, else in this package.",
        example="submit run.toml --groups=4 --nodes-per-group=2 --sbatch='--time=2:00:00 --partition=gpu'",
    )
    parser.add_argument(
        "--nodes-per-group", type=positive_int, default=1, metavar="N", help="nodes of each job (default: 1)"
    )
    parser.add_argument(
        "--ranks-per-node",
        type=positive_int,
        default=1,
        metavar="N",
        help="ranks on each node, usually one for each GPU (default: 1)",
    )
    parser.add_argument("--sbatch", default="", metavar="OPTIONS", help="more options of sbatch, in one argument")
    parser.set_defaults(command=run)


def run(args: argparse.Namespace) -> int:
    """Submit the jobs, after checking what each of them would check only once it has waited in the queue."""
    from hpcdistill.models.registry import config_class
    from hpcdistill.storage.run_dir import RunDir

    training = _parse_training(args)
    config = load_config(training.config, config_class(), training)
    if training.resume == "no":
        RunDir(config.run_dir).require_no_checkpoints()
    number = submit(config, args.training, args.nodes_per_group, args.ranks_per_node, args.sbatch)
    print(f"submitted {config.groups} groups as job array {number}; hpcdistill status {config.run_dir} shows progress")
    return 0


def _parse_training(args: argparse.Namespace) -> argparse.Namespace:
    """Parse the arguments that each job passes to train."""
    parser = Parser(prog="hpcdistill train")
    train.add_arguments(parser)
    training, unknown = parser.parse_known_args([*args.training, *SET_BY_SCRIPT])
    require_known(unknown, parser, args.parser)
    for word in args.training:
        if word.split("=")[0] in ("--group", "--exchange.transport") and word not in SET_BY_SCRIPT[:1]:
            raise UserError(f"{word}: each job gets its --group, and {SET_BY_SCRIPT[0]}, from submit; leave it out")
    return training


def submit(config: Config, training: Sequence[str], nodes_per_group: int, ranks_per_node: int, options: str) -> str:
    """Submit `SCRIPT` as an array with one job for each group, to run in this folder; return the number of the array.

    Args:
        config: configuration that results from `training`.
        training: arguments of `hpcdistill train`, but those that `SCRIPT` adds.
        nodes_per_group: nodes of each job, > 0.
        ranks_per_node: ranks on each node, > 0.
        options: more options of sbatch, quoted as in a shell.

    Raises:
        UserError: there is no script or no Slurm, sbatch refuses the job, or the options contradict each other.
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
        str(script_folder() / SCRIPT),
        *training,
    ]
    # So that jobs find this Python, wherever it is installed.
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    try:
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
    except FileNotFoundError:
        raise UserError("there is no sbatch on PATH; submit on a login node of the cluster") from None
    if result.returncode:
        raise UserError(f"sbatch refused the job: {result.stderr.strip()}\nthe command was: {shlex.join(command)}")
    return result.stdout.strip().partition(";")[0]


def script_folder() -> Path:
    """Return the absolute path of $HPCDISTILL_SLURM, else of ./slurm if it has scripts, else of the package's folder.

    Raises:
        UserError: $HPCDISTILL_SLURM names a folder without `SCRIPT`.
    """
    chosen = os.environ.get("HPCDISTILL_SLURM")
    places = [expanded(chosen)] if chosen else [Path("slurm"), PACKAGED]
    for place in places:
        if (place / SCRIPT).exists():
            return place.resolve()
    raise UserError(f"no {SCRIPT} in {places[-1]}; set HPCDISTILL_SLURM to a copy of {PACKAGED}, or unset it")


def _split(options: str) -> list[str]:
    try:
        words = shlex.split(options)
    except ValueError as error:
        raise UserError(f"--sbatch={options!r}: {str(error).lower()}; close each quote that is opened there") from None
    for word in words:
        if re.match(r"(--array|-a|--wrap)\b", word):
            raise UserError(f"--sbatch={options!r} has {word}, which replaces the array of groups; leave it out")
    return words
