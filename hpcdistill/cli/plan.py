"""The command `plan`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from hpcdistill.cli.options import add_json_option
from hpcdistill.cli.parser import Subparsers, positive_int
from hpcdistill.config.paths import input_path

if TYPE_CHECKING:
    from hpcdistill.planning.plan import Plan


def add_parser(commands: Subparsers) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "plan",
        help="say what pays: more workers, or another group",
        description="Predict the time to the same loss with more workers and with more groups, from what a training "
        "has measured before its groups teach each other: the gradient noise, the ensemble gap, the slope of the loss "
        "and the time of a step. The training may still be running, or be a short pilot. The answer is a table with "
        "95 % intervals, all inputs, measured or assumed, and a verdict in one sentence. Several runs that differ "
        "in their seeds only give narrower intervals. docs/planning.md explains the formulas.",
        example="plan runs/pilot --steps 20000 --ranks 8,16 --link 1.25,50",
    )
    parser.add_argument("runs", type=input_path, nargs="+", metavar="RUN_DIR", help="folder of the training or pilot")
    parser.add_argument(
        "--steps",
        type=positive_int,
        metavar="N",
        help="length of the training (default: that of its configuration; ten times that of a pilot whose groups never "
        "teach each other)",
    )
    parser.add_argument(
        "--ranks",
        type=_ranks,
        default=(),
        metavar="N,…",
        help="also predict these numbers of ranks, all groups together",
    )
    parser.add_argument(
        "--link",
        metavar="GB/s,µs",
        help="network that a larger group would span: bandwidth in one direction and latency of a message, such as "
        "1.25,50 for 10 Gbit/s Ethernet",
    )
    add_json_option(parser)
    parser.set_defaults(command=run)


def run(args: argparse.Namespace) -> int:
    """Print the plan."""
    from hpcdistill.planning.laws import Link
    from hpcdistill.planning.plan import plan
    from hpcdistill.reports.tables import print_result

    link = None if args.link is None else Link.parse(args.link)
    found = plan(args.runs, args.steps, args.ranks, link)
    print_result(_text(found), found, args.json)
    return 0


def _text(found: Plan) -> str:
    from hpcdistill.reports.tables import aligned

    return "\n".join(
        [
            f"To a validation loss of {found.loss} nats per {found.unit}:",
            *aligned(found.table()),
            "",
            *aligned([source.cells() for source in found.inputs]),
            "",
            *found.verdict.sentences(),
        ]
    )


def _ranks(text: str) -> tuple[int, ...]:
    return tuple(positive_int(word) for word in text.split(","))
