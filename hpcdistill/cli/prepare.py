"""The command `prepare`, with one subcommand for each kind of data."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hpcdistill.cli.parser import Parser, Subparsers
from hpcdistill.config.paths import input_path, output_path
from hpcdistill.errors import UserError

RESUMES = "If interrupted, run the same command again: it continues from what is done, in FILE.h5.pieces-*."
VALIDATION_SHARE = "About 5 % of the rows, evenly spread, become the validation part. "


def add_parser(commands: Subparsers) -> None:
    """Add the command and its kinds of data."""
    parser = commands.add_parser(
        "prepare",
        help="convert data to an HDF5 store for training",
        description="Convert data to an HDF5 store with a training and a validation part, compressed and checksummed.",
    )
    kinds = parser.add_subparsers(title="kinds of data", metavar="KIND")
    _add_text(kinds)
    _add_clicks(kinds)
    _add_criteo(kinds)
    _add_table(kinds)
    _add_images(kinds)


def _add_text(kinds: Subparsers) -> None:
    parser = kinds.add_parser(
        "text",
        help="text files, JSON lines or Parquet, as bytes or as tokens of a learned or given vocabulary",
        description="Each byte is a token, unless --vocabulary learns longer tokens or --tokenizer names a tokenizer. "
        "Inputs are text files, .jsonl, .ndjson or .json files with one record a line, and .parquet files; names may "
        "end in .gz or .zst. Without --validation about 5 % of the text become the validation part: whole texts chosen "
        "by a hash, or, if there are few, the end of each file. Links to files are followed; a warning names what is "
        "left out. With --tokenizer: " + RESUMES[0].lower() + RESUMES[1:],
        example="prepare text --input /usr/lib/python3 --include '*.py' --output data.h5",
    )
    _add_input(parser, "PATH", "files or folders")
    _add_output(parser)
    _add_validation(parser, "files or folders of the validation part")
    parser.add_argument("--include", default="*", metavar="GLOB", help="file names to take from folders, as '*.py'")
    parser.add_argument("--exclude", nargs="*", default=[], metavar="GLOB", help="files and folders to leave out")
    parser.add_argument("--column", metavar="NAME", help="field of a record that holds the text (default: text)")
    parser.add_argument(
        "--vocabulary",
        type=int,
        metavar="N",
        help="learn N tokens by byte pair encoding from the training part, the 256 bytes among them; with N = 8000 a "
        "token has about 4 bytes, so a sequence covers more text, but the model's output layer is larger",
    )
    _add_tokenizer(parser)
    _add_max_bad(parser, "records")
    parser.set_defaults(command=_prepare_text)


def _add_tokenizer(parser: Parser) -> None:
    parser.add_argument(
        "--tokenizer",
        type=input_path,
        metavar="PATH",
        help="encode with this tokenizer: a tokenizer.json of Hugging Face's tokenizers, or a folder that has one. The "
        "text must be UTF-8; a file that is not counts as a bad record. Each document is encoded whole, without tokens "
        "that the tokenizer adds at its ends; names of special tokens in it are ordinary text",
    )
    parser.add_argument(
        "--separator",
        metavar="TOKEN",
        help="token of --tokenizer to write after each document; '' for none (default: the eos_token of the "
        "tokenizer_config.json beside it, or its only special token with a usual name, as <|endoftext|> or </s>; if "
        "there is none, an error that lists its special tokens)",
    )
    parser.add_argument(
        "--parse-special-tokens",
        action="store_true",
        help="with --tokenizer: a name such as <|endoftext|> in the text becomes that special token",
    )
    parser.add_argument(
        "--processes", type=int, metavar="N", help="with --tokenizer: worker processes (default: one for each core)"
    )


def _add_clicks(kinds: Subparsers) -> None:
    parser = kinds.add_parser(
        "clicks",
        help="a synthetic click log whose lowest possible loss is known",
        description="Generate a click log from a known distribution and store the entropy of its labels: no model can "
        "have a lower expected loss. " + RESUMES,
        example="prepare clicks --synthetic --rows 1000000 --output clicks.h5",
    )
    parser.add_argument("--synthetic", action="store_true", required=True, help="generate the log; nothing is read")
    parser.add_argument("--rows", type=int, required=True, metavar="N", help="rows of both parts together")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the distribution and of the rows")
    _add_store(parser, _prepare_clicks)


def _add_criteo(kinds: Subparsers) -> None:
    parser = kinds.add_parser(
        "criteo",
        help="the files of the Criteo Display Advertising data",
        description="A line has a label, 13 integers and 26 categories, separated by tabs. An integer x becomes "
        "log(1 + max(x, 0)), or 0 where it is missing. A category is hashed to one of --buckets ids, or with "
        "--min-count gets an id of its own if it is frequent enough. " + VALIDATION_SHARE + RESUMES,
        example="prepare criteo --input day_0.gz --min-count 10 --output criteo.h5",
    )
    _add_input(parser, "FILE.tsv", "files of such lines, also .gz or .zst")
    parser.add_argument(
        "--buckets", type=int, metavar="N", help="ids of each categorical field (default, without --min-count: 2**18)"
    )
    parser.add_argument("--min-count", type=int, metavar="N", help="occurrences that give a category its own id")
    _add_max_bad(parser, "lines")
    _add_store(parser, _prepare_criteo)


def _add_table(kinds: Subparsers) -> None:
    parser = kinds.add_parser(
        "table",
        help="CSV or Parquet files with a binary label",
        description="Numeric columns are standardized by mean and deviation of the training part; all others are "
        "categorical. A CSV column is numeric if at most 5 % of its values are not numbers; Parquet has types. "
        + VALIDATION_SHARE
        + RESUMES,
        example="prepare table --input clicks.csv --label clicked --output table.h5",
    )
    _add_input(
        parser, "PATH", "CSV files, also .gz or .zst, or Parquet files, or folders of them, all with the same columns"
    )
    parser.add_argument("--label", required=True, metavar="COLUMN", help="column to predict; it has two values")
    parser.add_argument(
        "--positive",
        metavar="VALUE",
        help="the value that counts as 1 (default: the larger number, or the last word in alphabetical order)",
    )
    for option, meaning in (
        ("--categorical", "categories even if they are numbers, such as codes"),
        ("--dense", "numbers; other values count as missing"),
        ("--drop", "left out, such as ids"),
    ):
        parser.add_argument(
            option, nargs="+", action="extend", default=[], metavar="COLUMN", help=f"columns that are {meaning}"
        )
    _add_max_bad(parser, "lines")
    _add_store(parser, _prepare_table)


def _add_images(kinds: Subparsers) -> None:
    parser = kinds.add_parser(
        "images",
        help="pictures in one folder for each class, as ImageNet's, or IDX files, as MNIST's",
        description="Without --validation about 5 % of the pictures, evenly spread, become the validation part. "
        "Without --size the files of a folder are stored as they are and decoded during training. " + RESUMES,
        example="prepare images --input train --validation val --output images.h5",
    )
    _add_input(
        parser, "PATH", "a folder with one folder for each class; or two IDX files[.gz], of images and of labels"
    )
    _add_validation(parser, "the same, of the validation part")
    parser.add_argument("--size", type=int, metavar="S", help="store the middle of each picture as S × S pixels")
    _add_max_bad(parser, "images")
    _add_store(parser, _prepare_images)


def _add_input(parser: Parser, metavar: str, meaning: str) -> None:
    parser.add_argument("--input", type=input_path, nargs="+", required=True, metavar=metavar, help=meaning)


def _add_validation(parser: Parser, meaning: str) -> None:
    parser.add_argument("--validation", type=input_path, nargs="+", default=[], metavar="PATH", help=meaning)


def _add_output(parser: Parser) -> None:
    parser.add_argument("--output", type=output_path, required=True, metavar="FILE.h5", help="store to write")


def _add_max_bad(parser: Parser, items: str) -> None:
    parser.add_argument(
        "--max-bad", type=int, default=0, metavar="N", help=f"bad {items} to leave out before giving up (default: 0)"
    )


def _add_store(parser: Parser, command: Callable[[argparse.Namespace], int]) -> None:
    _add_output(parser)
    parser.add_argument("--processes", type=int, metavar="N", help="worker processes (default: one for each core)")
    parser.set_defaults(command=command)


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
    from hpcdistill.data.tokens.tokenizer_file import TokenizerChoice

    choice = args.tokenizer and TokenizerChoice(args.tokenizer, args.separator, args.parse_special_tokens)
    if not choice and (args.separator is not None or args.parse_special_tokens or args.processes is not None):
        raise UserError(
            "--separator, --parse-special-tokens and --processes are for --tokenizer; add it, or leave them out"
        )
    prepare_text(
        args.input,
        args.output,
        args.include,
        args.exclude,
        args.vocabulary,
        args.validation,
        args.column,
        args.max_bad,
        choice,
        args.processes,
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
        from hpcdistill.data.rows.prepare_table import ColumnChoices, prepare_table

    choices = ColumnChoices(tuple(args.categorical), tuple(args.dense), tuple(args.drop))
    prepare_table(args.input, args.output, args.label, args.positive, args.max_bad, args.processes, choices)
    return 0


def _prepare_images(args: argparse.Namespace) -> int:
    from hpcdistill.data.images.prepare_images import prepare_images

    prepare_images(args.input, args.output, args.validation, args.size, args.max_bad, args.processes)
    return 0
