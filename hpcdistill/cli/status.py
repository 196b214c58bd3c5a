"""The command `status`."""

from __future__ import annotations

import argparse

from hpcdistill.cli.parser import Subparsers
from hpcdistill.config.paths import input_path


def add_parser(commands: Subparsers) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "status",
        help="show the progress of a run",
        description="Print a table with one row for each group of a run: its step, speed, losses, the staleness of its "
        "teachers, its newest checkpoint, and the peers that it keeps in quarantine. Works during and after the run on "
        "any machine that sees its folder.",
        example="status runs/mine",
    )
    parser.add_argument("run", type=input_path, metavar="RUN_DIR", help="folder of the run")
    parser.set_defaults(command=run)


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    from hpcdistill.reports.status import status

    print(status(args.run))
    return 0
