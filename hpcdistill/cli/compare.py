"""The command `compare`."""

from __future__ import annotations

import argparse

from hpcdistill.cli.options import add_json_option
from hpcdistill.cli.parser import Subparsers
from hpcdistill.config.paths import input_path, output_path


def add_parser(commands: Subparsers) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "compare",
        help="compare the steps and the time that runs took to reach a loss",
        description="Print, from the metrics of runs, the steps, seconds and examples until the validation loss first "
        "was at or below a target. Runs with an equal number of examples per step, all groups together, spend equal "
        "computation per step.",
        example="compare runs/plain runs/mine --target 1.4",
    )
    parser.add_argument("runs", type=input_path, nargs="+", metavar="RUN_DIR", help="folders of runs, baseline first")
    parser.add_argument(
        "--target", type=float, metavar="LOSS", help="in nats (default: the lowest loss that all runs have reached)"
    )
    parser.add_argument(
        "--output", type=output_path, metavar="FILE.html|FILE.svg", help="also draw the losses, as a page or a figure"
    )
    add_json_option(parser)
    parser.set_defaults(command=run)


def run(args: argparse.Namespace) -> int:
    """Print the comparison, and draw it where asked to."""
    from hpcdistill.reports.compare import compare, draw_comparison
    from hpcdistill.reports.tables import print_result

    found = compare(args.runs, args.target)
    print_result(found.table(), found, args.json)
    if args.output:
        draw_comparison(found, args.output)
    return 0
