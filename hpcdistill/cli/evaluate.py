"""The command `evaluate`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from hpcdistill.cli.options import MODEL_NAMES, add_model_options
from hpcdistill.cli.parser import Subparsers
from hpcdistill.config.paths import model_name

if TYPE_CHECKING:
    from hpcdistill.evaluation.evaluate import Evaluation


def add_parser(commands: Subparsers) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "evaluate",
        help="score trained models, and ensembles of them",
        description="Score models on the validation part of a store: each model, the ensemble of each run's groups, "
        "and the ensemble of all models. An ensemble predicts the mean of its members' probabilities. " + MODEL_NAMES,
        example="evaluate runs/mine runs/plain:0 --data data.h5",
    )
    parser.add_argument(
        "models", type=model_name, nargs="+", metavar="MODEL", help="such as runs/mine, or runs/mine:0 for its group 0"
    )
    add_model_options(parser)
    parser.set_defaults(command=run)


def run(args: argparse.Namespace) -> int:
    """Print the scores."""
    from hpcdistill.evaluation.evaluate import evaluate
    from hpcdistill.reports.tables import print_result

    found = evaluate(args.models, args.data, args.checkpoint, args.trust)
    print_result(_table(found), found, args.json)
    return 0


def _table(found: Evaluation) -> str:
    from hpcdistill.reports.tables import aligned, cell

    titles = [title.replace("_", " ") for title in next(iter(found.scores.values()))]
    rows = [[name, *map(cell, scores.values())] for name, scores in found.scores.items()]
    note = f"{found.predictions} validation {found.unit}s of {found.data}, losses in nats per {found.unit}"
    return "\n".join([*aligned([["", *titles], *rows]), "", note])
