"""The command `export`."""

from __future__ import annotations

import argparse
from pathlib import Path

from hpcdistill.cli.options import add_checkpoint_option
from hpcdistill.cli.parser import Subparsers
from hpcdistill.config.paths import input_path, model_name
from hpcdistill.errors import UserError

FORMATS = ("torch", "safetensors", "huggingface")


def add_parser(commands: Subparsers) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "export",
        help="write a trained model for other programs",
        description="Write the weights of a trained model for other programs: the average of the weights if the run "
        "kept one (train.average). The data of the run need not be there, and no code is run that a checkpoint names.",
        example="export runs/mine:0 --format safetensors --output mine.safetensors",
    )
    parser.add_argument(
        "model",
        type=model_name,
        metavar="MODEL",
        help="such as runs/mine:0 for group 0 of a run, or the file of a checkpoint",
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        required=True,
        help="torch: a state dict, for torch.load; safetensors: the same, for safetensors; huggingface: a folder, for "
        "from_pretrained of transformers, of a model that is one of its classes",
    )
    parser.add_argument(
        "--output",
        type=input_path,
        metavar="PATH",
        help="file, or folder of --format huggingface, which must not exist; without it, a name like that of MODEL in "
        "the current folder",
    )
    add_checkpoint_option(parser)
    parser.set_defaults(command=run)


def run(args: argparse.Namespace) -> int:
    """Write the model, and print where it is."""
    from hpcdistill.models.export import SUFFIXES, export
    from hpcdistill.models.saved import SavedModel
    from hpcdistill.storage.run_dir import named_checkpoints

    found = named_checkpoints(args.model, args.checkpoint)
    if len(found) > 1:
        raise UserError(f"{args.model} names {len(found)} models; choose one of {', '.join(found)}")
    ((name, checkpoint),) = found.items()
    stem = checkpoint.stem if name == str(checkpoint) else Path(name).name.replace(":", "-g")
    output = args.output or Path(stem + SUFFIXES[args.format])
    saved = SavedModel.load(checkpoint)
    export(saved, args.format, output)
    print(f"{output}: {name} after {saved.step} steps")
    return 0
