"""The command `churn`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from hpcdistill.cli.options import MODEL_NAMES, add_model_options
from hpcdistill.cli.parser import Subparsers
from hpcdistill.config.paths import model_names

if TYPE_CHECKING:
    from hpcdistill.evaluation.churn import Churn


def add_parser(commands: Subparsers) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "churn",
        help="measure how much the predictions of two models differ",
        description="Measure how much two models' predictions for the validation part of a store differ, with 95 % "
        "bootstrap intervals. Either of the two may be an ensemble: several models joined by commas, which predict the "
        "mean of their probabilities. " + MODEL_NAMES,
        example="churn runs/a:0 runs/b:0,runs/b:1 --data data.h5",
    )
    parser.add_argument(
        "a", type=model_names, metavar="A", help="a model, such as runs/one:0, or an ensemble: runs/one:0,runs/one:1"
    )
    parser.add_argument("b", type=model_names, metavar="B", help="the model or ensemble to compare with it")
    add_model_options(parser)
    parser.set_defaults(command=run)


def run(args: argparse.Namespace) -> int:
    """Print the differences."""
    from hpcdistill.evaluation.churn import churn
    from hpcdistill.reports.tables import print_result

    found = churn(args.a, args.b, args.data, args.checkpoint, args.trust)
    print_result(_table(found), found, args.json)
    return 0


def _table(found: Churn) -> str:
    from hpcdistill.reports.tables import aligned

    rows = [("", "mean", "95 % interval")]
    for title, estimate in (
        ("mean absolute difference", found.mean_absolute_difference),
        ("disagreement", found.disagreement),
    ):
        rows.append((title, f"{estimate.value:.5f}", f"{estimate.low:.5f} to {estimate.high:.5f}"))
    sides = [f"A: {' and '.join(found.a)}", f"B: {' and '.join(found.b)}", ""]
    return "\n".join([*sides, *aligned(rows), "", f"{found.samples} validation samples of {found.data}"])
