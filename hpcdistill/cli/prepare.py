"""`hpcdistill prepare text | clicks | criteo | table | images`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hpcdistill.config.paths import input_path, output_path
from hpcdistill.errors import UserError

INTERRUPTED = "If it is interrupted, the same command goes on from what is done, in FILE.h5.pieces-*."


def add_prepare(commands: Any) -> None:
    """Add the command and its kinds of data."""
    prepare = commands.add_parser("prepare", help="turn data into an HDF5 store")
    kinds = prepare.add_subparsers(title="kinds of data", metavar="KIND")
    _add_text(kinds)
    _add_clicks(kinds)
    _add_criteo(kinds)
    _add_table(kinds)
    _add_images(kinds)


def _add_text(kinds: Any) -> None:
    text = kinds.add_parser(
        "text",
        help="text files, JSON lines or Parquet, by bytes or a learned vocabulary",
        description="One byte is one token, unless --vocabulary asks for longer ones. Files are text; names may end "
        "in .gz or .zst. Of .jsonl, .ndjson and .parquet files each record is a text, and of .json files that hold "
        "such lines. Without --validation about 5 % of the text become the validation part: texts chosen by a hash, or "
        "where they are few the end of each file. Links to files are followed; a warning tells what is left out.",
    )
    text.add_argument("--input", type=input_path, nargs="+", required=True, metavar="PATH", help="files or folders")
    text.add_argument("--output", type=output_path, required=True, metavar="FILE.h5", help="the store to make")
    text.add_argument(
        "--validation", type=input_path, nargs="+", default=[], metavar="PATH", help="files or folders for that part"
    )
    text.add_argument("--include", default="*", metavar="GLOB", help="file names to take from folders, as '*.py'")
    text.add_argument("--exclude", nargs="*", default=[], metavar="GLOB", help="files and folders to pass over")
    text.add_argument("--column", metavar="NAME", help="which field of records has the text; without it, text")
    text.add_argument(
        "--vocabulary",
        type=int,
        metavar="N",
        help="learn N tokens from the training part by byte pair encoding: the 256 bytes, and what is frequent; 8000 "
        "make a token of some 4 bytes, so a sequence tells more, but the model's output layer grows",
    )
    _add_max_bad(text, "records")
    text.set_defaults(command=_prepare_text)


def _add_clicks(kinds: Any) -> None:
    clicks = kinds.add_parser(
        "clicks",
        help="a click log whose best possible loss is known",
        description="Generate a click log from a known truth, and store the mean entropy of that: no model can expect "
        "a lower loss. " + INTERRUPTED,
    )
    clicks.add_argument("--synthetic", action="store_true", required=True, help="generate it, from nothing")
    clicks.add_argument("--rows", type=int, required=True, metavar="N", help="how many, of both parts together")
    clicks.add_argument("--seed", type=int, default=0, metavar="S", help="of the truth and of the rows")
    _add_store(clicks, _prepare_clicks)


def _add_criteo(kinds: Any) -> None:
    criteo = kinds.add_parser(
        "criteo",
        help="the Criteo Display Advertising data as it is",
        description="A line is a label, 13 integers and 26 categories, tab-separated. Integers become "
        "log(1 + max(x, 0)), and 0 where missing; categories one of --buckets, or with --min-count an id for each that "
        "is frequent enough. About 5 % of the rows, evenly spread, become the validation part. " + INTERRUPTED,
    )
    criteo.add_argument(
        "--input",
        type=input_path,
        nargs="+",
        required=True,
        metavar="FILE.tsv",
        help="files of lines, also .gz or .zst",
    )
    criteo.add_argument("--buckets", type=int, metavar="N", help="ids of each categorical field; without either, 2**18")
    criteo.add_argument("--min-count", type=int, metavar="N", help="how often a category must occur to have its own id")
    _add_max_bad(criteo, "lines")
    _add_store(criteo, _prepare_criteo)


def _add_table(kinds: Any) -> None:
    table = kinds.add_parser(
        "table",
        help="files of CSV or Parquet with a column to be predicted",
        description="Columns of numbers are standardised, by mean and deviation of the training part; the others are "
        "categorical. In CSV a column is of numbers where at most 5 % of its values are none; Parquet has types. About "
        "5 % of the rows, evenly spread, become the validation part. " + INTERRUPTED,
    )
    table.add_argument(
        "--input",
        type=input_path,
        nargs="+",
        required=True,
        metavar="PATH",
        help="files of CSV, also .gz or .zst, or of Parquet, or folders of them; with the same columns",
    )
    table.add_argument("--label", required=True, metavar="COLUMN", help="what is to be predicted; it has two values")
    table.add_argument(
        "--positive", metavar="VALUE", help="which of them is 1; without it, the larger number or last word in order"
    )
    for option, becomes in (
        ("--categorical", "categories, even if they are numbers, such as codes"),
        ("--dense", "numbers, and missing where they are none"),
        ("--drop", "left out, such as ids"),
    ):
        table.add_argument(
            option, nargs="+", action="extend", default=[], metavar="COLUMN", help=f"columns that are {becomes}"
        )
    _add_max_bad(table, "lines")
    _add_store(table, _prepare_table)


def _add_images(kinds: Any) -> None:
    images = kinds.add_parser(
        "images",
        help="pictures in a folder for each class, as ImageNet's, or IDX files, as MNIST's",
        description="Without --validation about 5 % of the pictures, evenly spread, become the validation part. "
        "Without --size the files of a folder are stored as they are, and decoded in training. " + INTERRUPTED,
    )
    images.add_argument(
        "--input",
        type=input_path,
        nargs="+",
        required=True,
        metavar="PATH",
        help="a folder that has a folder for each class; or two IDX files[.gz], of images and of labels",
    )
    images.add_argument(
        "--validation", type=input_path, nargs="+", default=[], metavar="PATH", help="the same for that part"
    )
    images.add_argument("--size", type=int, metavar="S", help="store arrays of S × S pixels, of each picture's middle")
    _add_max_bad(images, "images")
    _add_store(images, _prepare_images)


def _add_max_bad(kind: Any, things: str) -> None:
    kind.add_argument(
        "--max-bad", type=int, default=0, metavar="N", help=f"bad {things} to pass over; without it, none"
    )


def _add_store(kind: Any, command: Callable[[argparse.Namespace], int]) -> None:
    kind.add_argument("--output", type=output_path, required=True, metavar="FILE.h5", help="the store to make")
    kind.add_argument("--processes", type=int, metavar="N", help="how many; without it, one for each core")
    kind.set_defaults(command=command)


# Each kind imports what it needs when it runs, so that `--help` is quick.


@contextmanager
def _requires_pyarrow() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("pyarrow"):
            raise
        raise UserError(
            "tables are read with pyarrow; pip install pyarrow, or hpcdistill with its extra: hpcdistill[tables]"
        ) from None


def _prepare_text(args: argparse.Namespace) -> int:
    from hpcdistill.data.tokens.prepare_text import prepare_text

    prepare_text(
        args.input,
        args.output,
        args.include,
        args.exclude,
        args.vocabulary,
        args.validation,
        args.column,
        args.max_bad,
    )
    return 0


def _prepare_clicks(args: argparse.Namespace) -> int:
    from hpcdistill.data.rows.prepare_synthetic import prepare_clicks

    prepare_clicks(args.output, args.rows, args.seed, args.processes)
    return 0


def _prepare_criteo(args: argparse.Namespace) -> int:
    with _requires_pyarrow():
        from hpcdistill.data.rows.prepare_criteo import prepare_criteo

    prepare_criteo(args.input, args.output, args.buckets, args.min_count, args.max_bad, args.processes)
    return 0


def _prepare_table(args: argparse.Namespace) -> int:
    with _requires_pyarrow():
        from hpcdistill.data.rows.prepare_table import Wishes, prepare_table

    wishes = Wishes(tuple(args.categorical), tuple(args.dense), tuple(args.drop))
    prepare_table(args.input, args.output, args.label, args.positive, args.max_bad, args.processes, wishes)
    return 0


def _prepare_images(args: argparse.Namespace) -> int:
    from hpcdistill.data.images.prepare_images import prepare_images

    prepare_images(args.input, args.output, args.validation, args.size, args.max_bad, args.processes)
    return 0
