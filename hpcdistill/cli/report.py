"""The command `report`."""

from __future__ import annotations

import argparse

from hpcdistill.cli.parser import Subparsers
from hpcdistill.config.paths import input_path, output_path
from hpcdistill.errors import UserError


def add_parser(commands: Subparsers) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "report",
        help="draw the curves of one or more runs on one page",
        description="Write a self-contained HTML page with the losses, throughput, staleness and exchange cost of all "
        "groups of the given runs. Training writes one for its own run, run_dir/report.html, at its end.",
        example="report runs/plain runs/mine --output page.html",
    )
    parser.add_argument("runs", type=input_path, nargs="+", metavar="RUN_DIR", help="folders of runs")
    parser.add_argument("--output", type=output_path, required=True, metavar="FILE.html", help="page to write")
    parser.set_defaults(command=run)


def run(args: argparse.Namespace) -> int:
    """Write the page."""
    from hpcdistill.reports.report import write_report

    try:
        write_report(args.runs, args.output)
    except OSError as error:
        raise UserError(f"--output {args.output} cannot be written: {error.strerror}; choose another file") from None
    return 0
