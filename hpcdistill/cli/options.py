"""Options that several commands share."""

from __future__ import annotations

from hpcdistill.cli.parser import Parser
from hpcdistill.config.paths import input_path, output_path

MODEL_NAMES = (
    "A model is named by a checkpoint file, or as RUN_DIR:GROUP; a run folder names the models of all its groups."
)


def add_model_options(parser: Parser) -> None:
    """Add the options of commands that load trained models and score them on a store."""
    parser.add_argument(
        "--data",
        type=input_path,
        metavar="FILE.h5",
        help="store whose validation part is used; without it, the data that the models were trained on",
    )
    add_checkpoint_option(parser)
    add_trust_option(parser)
    add_json_option(parser)


def add_checkpoint_option(parser: Parser) -> None:
    """Add `--checkpoint`."""
    parser.add_argument(
        "--checkpoint",
        choices=("best", "last"),
        default="best",
        help="which checkpoint of a run: the one with the lowest validation loss (default), or the newest",
    )


def add_trust_option(parser: Parser) -> None:
    """Add `--trust`."""
    parser.add_argument(
        "--trust",
        action="store_true",
        help="run the code that checkpoints of other users name as model.factory or data.factory",
    )


def add_json_option(parser: Parser) -> None:
    """Add `--json`."""
    parser.add_argument("--json", type=output_path, metavar="FILE", help="also write the results there, as JSON")
