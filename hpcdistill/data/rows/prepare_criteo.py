r"""`hpcdistill prepare criteo`: a store of the Criteo Display Advertising data.

A line is a label (1: clicked), 13 integers and 26 categories of 8 hexadecimal digits, tab-separated; each of the 39 may
be empty. The encoding follows DLRM (Naumov et al. 2019, arXiv 1906.00091; `data_utils.py` and `dlrm_data_pytorch.py` of
github.com/facebookresearch/dlrm), with whose results others are usually compared:

- integers: log(1 + max(x, 0)), and 0 if missing;
- categories: one of a fixed number of buckets, by remainder; or, with a minimum count, one id for each that is frequent
  enough. In both cases 0 means missing.

The categories are 32-bit hashes already, so a remainder spreads them evenly.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow
import pyarrow.csv

from hpcdistill.data.arrays import Array
from hpcdistill.data.prepare.bad_records import bad_arrays, collect
from hpcdistill.data.prepare.lines import Block, count_lines, fingerprint, last_line_end, quote, read_blocks
from hpcdistill.data.prepare.pieces import Piece, make_pieces, pieces_folder, read_piece
from hpcdistill.data.prepare.split import in_validation
from hpcdistill.data.rows.categories import Vocabulary, coded, count_training
from hpcdistill.data.rows.join import join_pieces
from hpcdistill.data.rows.store import Fields, Rows
from hpcdistill.errors import UserError

INTEGERS = 13
CATEGORIES = 26
COLUMNS = 1 + INTEGERS + CATEGORIES
BUCKETS = 1 << 18
"""Default number of buckets. The largest field has about 92,000 categories that are not rare (github.com/junwei-pan/
Field_weighted_Factorization_Machines, README): with about three buckets for each, most share theirs with no other."""
MISSING = -1

LARGEST = 10**18 - 1
DIGITS = 8

_LABEL, _INTEGER, _CATEGORY = rb"[01]", rb"(?:-?[0-9]{1,18})?", rb"(?:[0-9a-fA-F]{8})?"
_KINDS = [_LABEL] + [_INTEGER] * INTEGERS + [_CATEGORY] * CATEGORIES
_EXPECTED = {_LABEL: "0 or 1", _INTEGER: "an integer or nothing", _CATEGORY: "8 hexadecimal digits or nothing"}
_LINE = re.compile(rb"\t".join(_KINDS))
_CHARACTERS = b"0123456789abcdefABCDEF-\t\n"
_NAMES = [str(column) for column in range(COLUMNS)]
_TYPES = [pyarrow.string()] + [pyarrow.int64()] * INTEGERS + [pyarrow.string()] * CATEGORIES
_PARSING = pyarrow.csv.ParseOptions(delimiter="\t", quote_char=False)
_CONVERSION = pyarrow.csv.ConvertOptions(
    check_utf8=False, column_types=dict(zip(_NAMES, _TYPES, strict=True)), null_values=[""], strings_can_be_null=True
)


def prepare_criteo(
    inputs: Sequence[Path],
    output: Path,
    buckets: int | None = None,
    min_count: int | None = None,
    max_bad: int = 0,
    processes: int | None = None,
) -> None:
    """Write a store of rows from Criteo's lines; about 5 % of them, evenly spread, become the validation part.

    Args:
        inputs: files, whose names may end in .gz or .zst.
        output: HDF5 file to write.
        buckets: number of ids of each categorical field, if categories are put into buckets; by default `BUCKETS`.
        min_count: in place of buckets, minimum number of occurrences in the training part of a category with its own
            id; all others have the id 1. Memory grows with the number of different categories.
        max_bad: maximum number of bad lines to pass over.
        processes: number of processes that parse; by default one for each core.

    Raises:
        UserError: an input cannot be read, too many lines are bad, or there are too few.
    """
    if buckets is not None and min_count is not None:
        raise UserError("--buckets and --min-count are two ways to give ids to categories; choose one")
    if buckets is not None and not 2 <= buckets < 2**31:
        raise UserError(f"--buckets {buckets} must be at least 2, as 0 is for missing categories, and below 2**31")
    if min_count is not None and min_count < 1:
        raise UserError(f"--min-count {min_count} must be at least 1")
    names = [f"C{i + 1}" for i in range(CATEGORIES)]
    size = buckets or BUCKETS
    make = partial(_piece, size if min_count is None else None)
    with pieces_folder(output, "criteo", 2, fingerprint(inputs), make.args) as folder:
        made = make_pieces(folder, make, read_blocks(inputs, last_line_end), processes)
        paths = collect(made, max_bad, "lines")
        vocabulary = Vocabulary(count_training(paths, CATEGORIES), min_count) if min_count else None
        cardinalities = vocabulary.cardinalities if vocabulary else [size] * CATEGORIES
        fields = Fields([f"I{i + 1}" for i in range(INTEGERS)], dict(zip(names, cardinalities, strict=True)))
        join_pieces(output, paths, partial(_rows, vocabulary), fields, ", ".join(map(str, inputs)))


def _rows(vocabulary: Vocabulary | None, path: Path) -> tuple[Rows, Array]:
    names = ("codes", "values", "begins") if vocabulary else ("categorical",)
    dense, label, validation, *categories = read_piece(path, "dense", "label", "validation", *names)
    ids = vocabulary.ids(*categories) if vocabulary else categories[0]
    return Rows(dense, ids, label), validation


class Lines(NamedTuple):
    """Parsed good lines of a block, and quotations of its bad lines."""

    dense: Array
    """float32 [lines, INTEGERS]."""
    categories: list[Array]
    """int64 [lines], value of each category, or `MISSING`; one array for each field."""
    label: Array
    """uint8 [lines]."""
    numbers: Array
    """int64 [lines], number of each line among the lines of all files, including bad ones."""
    bad: list[str]
    """Quotations of the bad lines."""


def _piece(buckets: int | None, block: Block) -> Piece:
    lines = parse(block)
    validation = in_validation(lines.numbers)
    order = np.argsort(validation, kind="stable")  # the training part first, as it will be stored
    validation = validation[order]
    piece = {
        "dense": lines.dense[order],
        "label": lines.label[order],
        "validation": validation,
        **bad_arrays(lines.bad),
    }
    if buckets is None:
        encoded = [pyarrow.array(values).dictionary_encode() for values in lines.categories]
        columns = [(values.indices.to_numpy()[order], values.dictionary.to_numpy()) for values in encoded]
        return piece | coded(columns, ~validation)
    ids = np.empty((len(validation), CATEGORIES), np.int32)
    for column, values in enumerate(lines.categories):
        remainder = values - values // (buckets - 1) * (buckets - 1)  # three times as fast as %
        ids[:, column] = ((1 + remainder) * (values != MISSING))[order]
    return piece | {"categorical": ids}


def parse(block: Block) -> Lines:
    """Parse the lines of a block; all at once if none is bad."""
    text = block.read()
    if b"\r" in text:
        text = text.replace(b"\r\n", b"\n")
    count = count_lines(text)
    if parsed := _parse(text, count):
        return Lines(*parsed, block.row + np.arange(count), [])
    lines = text.removesuffix(b"\n").split(b"\n")
    good = [number for number, line in enumerate(lines) if _LINE.fullmatch(line)]
    bad = sorted({number for number, line in enumerate(lines) if line} - set(good))
    parsed = _parse(b"\n".join(lines[number] for number in good), len(good))
    assert parsed
    quotes = [quote(block.file, block.line + i, _reason(lines[i]), lines[i]) for i in bad]
    return Lines(*parsed, block.row + np.array(good, np.int64), quotes)


def _parse(text: bytes, count: int) -> tuple[Array, list[Array], Array] | None:
    """Parse `count` lines that end in line feeds; return None if one of them is bad or blank."""
    if not count:
        return np.empty((0, INTEGERS), np.float32), [np.empty(0, np.int64)] * CATEGORIES, np.empty(0, np.uint8)
    if text.translate(None, _CHARACTERS):
        return None
    try:
        table = pyarrow.csv.read_csv(pyarrow.BufferReader(text), _reading(text), _PARSING, _CONVERSION)
        label, *columns = (column.combine_chunks() for column in table.columns)
        categories = [_values(column) for column in columns[INTEGERS:]]
    except ValueError:  # the base class of Arrow's errors
        return None
    integers = [column.fill_null(0).to_numpy() for column in columns[:INTEGERS]]
    zeros_and_ones = np.frombuffer(label.buffers()[2] or b"", np.uint8) - ord("0")
    if len(label) != count or len(zeros_and_ones) != count or zeros_and_ones.max() > 1:
        return None
    if max(column.max() for column in integers) > LARGEST or min(column.min() for column in integers) < -LARGEST:
        return None
    dense = np.empty((count, INTEGERS), np.float32)
    for place, column in enumerate(integers):
        dense[:, place] = np.log((1 + np.maximum(column, 0)).astype(np.float32))
    return dense, categories, zeros_and_ones


def _reading(text: bytes) -> pyarrow.csv.ReadOptions:
    return pyarrow.csv.ReadOptions(use_threads=False, block_size=len(text) + 1, column_names=_NAMES)


def _values(column: pyarrow.Array) -> Array:
    """Convert texts of 8 hexadecimal digits to int64; empty ones become `MISSING`.

    Raises:
        ValueError: a text has another length or other characters.
    """
    _, offsets, digits = column.buffers()
    lengths = np.diff(np.frombuffer(offsets, np.int32)[: len(column) + 1])
    there = lengths == DIGITS
    if not (there | (lengths == 0)).all():
        raise ValueError("not 8 digits")
    values = np.full(len(column), MISSING, np.int64)
    values[there] = np.frombuffer(binascii.unhexlify(digits or b""), ">u4")
    return values


def _reason(line: bytes) -> str:
    cells = line.split(b"\t")
    if len(cells) != COLUMNS:
        return f"{len(cells)} columns instead of {COLUMNS}"
    column, kind = next((i, kind) for i, kind in enumerate(_KINDS) if not re.fullmatch(kind, cells[i]))
    return f"column {column + 1} is {cells[column][:20]!r}, not {_EXPECTED[kind]}"
