"""The command `doctor`."""

from __future__ import annotations

import argparse
from pathlib import Path

from hpcdistill.cli.parser import Subparsers
from hpcdistill.config.paths import input_path
from hpcdistill.errors import UserError


def add_parser(commands: Subparsers) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "doctor",
        help="check that everything a run needs is installed and works",
        description="Print a table of checks, each with the remedy where it fails. Start it alone, or with mpirun or "
        "srun as a run would be: then all ranks are checked together.",
        example="doctor --slurm --folder /scratch/me",
    )
    parser.add_argument(
        "--slurm", action="store_true", help="also check what a Slurm job needs; start it inside one, with srun"
    )
    parser.add_argument(
        "--folder",
        type=input_path,
        metavar="DIR",
        help="with --slurm: the folder in which runs will be written (default: this one)",
    )
    parser.set_defaults(command=run)


def run(args: argparse.Namespace) -> int:
    """Run the checks; return 1 where training cannot run."""
    if args.folder and not args.slurm:
        raise UserError("--folder is checked with --slurm only; add --slurm")
    from hpcdistill.doctor.main import check_all

    return check_all(args.folder or Path() if args.slurm else None)
