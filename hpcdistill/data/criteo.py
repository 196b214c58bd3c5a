r"""`hpcdistill prepare criteo`: the Criteo Display Advertising data as it is.

A line is a label (1: clicked), 13 integers and 26 categories of 8 hexadecimal digits, tab-separated; each of the 39 may
be empty. What becomes of them follows DLRM (Naumov et al. 2019, arXiv 1906.00091; `data_utils.py` and
`dlrm_data_pytorch.py` of github.com/facebookresearch/dlrm), whose results are the ones most compared with:

- integers: log(1 + max(x, 0)), and 0 where missing;
- categories: one of a fixed number of buckets, by remainder; or, with a minimal count, one id for each that is
  frequent enough. In both cases 0 is missing.

The categories are 32-bit hashes already, so a remainder spreads them evenly.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hpcdistill.data.bad import bad_ones, collect
from hpcdistill.data.hashing import in_validation
from hpcdistill.data.lines import Block, fingerprint, quote, read_blocks
from hpcdistill.data.pieces import Piece, join_pieces, make_pieces, pieces_folder, read_piece
from hpcdistill.data.rows import Array, Fields, Rows
from hpcdistill.data.vocabulary import Vocabulary, count_training
from hpcdistill.errors import UserError

INTEGERS = 13
CATEGORIES = 26
COLUMNS = 1 + INTEGERS + CATEGORIES
BUCKETS = 1 << 18
"""By default. The largest of the fields has some 92,000 categories that are not rare (github.com/junwei-pan/
Field_weighted_Factorization_Machines, README): with about three buckets for each, most are alone in theirs."""
MISSING = -1

_LABEL, _INTEGER, _CATEGORY = rb"[01]", rb"(?:-?[0-9]{1,18})?", rb"(?:[0-9a-fA-F]{8})?"
_KINDS = [_LABEL] + [_INTEGER] * INTEGERS + [_CATEGORY] * CATEGORIES
_EXPECTED = {_LABEL: "0 or 1", _INTEGER: "an integer or nothing", _CATEGORY: "8 hexadecimal digits or nothing"}
_LINE = re.compile(rb"\t".join(_KINDS))


def prepare_criteo(
    inputs: Sequence[Path],
    output: Path,
    buckets: int | None = None,
    min_count: int | None = None,
    max_bad: int = 0,
    processes: int | None = None,
) -> None:
    """Turn Criteo's lines into a store of rows; about 5 % of them, evenly spread, become the validation part.

    Args:
        inputs: files, which may end in .gz.
        output: the HDF5 file to make.
        buckets: ids of each categorical field, when categories are put into buckets; by default `BUCKETS`.
        min_count: instead, give an id to each category that occurs so often in the training part; 1 is for all others.
            This counts in memory that grows with the number of different categories.
        max_bad: bad lines to pass over.
        processes: how many parse; by default one for each core.

    Raises:
        UserError: an input cannot be read, too many lines are bad, or there are too few.
    """
    if buckets is not None and min_count is not None:
        raise UserError("--buckets and --min-count are two ways to give ids to categories; choose one")
    if buckets is not None and not 2 <= buckets < 2**31:
        raise UserError(f"--buckets {buckets} must be at least 2, as 0 is for missing categories, and below 2**31")
    if min_count is not None and min_count < 1:
        raise UserError(f"--min-count {min_count} must be at least 1")
    with pieces_folder(output, "criteo", 1, fingerprint(inputs)) as folder:
        paths = collect(make_pieces(folder, parse, read_blocks(inputs), processes), max_bad, "lines")
        ids: Buckets | Vocabulary = Buckets(buckets or BUCKETS)
        if min_count:
            ids = Vocabulary(count_training(paths, "categorical", range(CATEGORIES)), min_count)
        names = [f"C{i + 1}" for i in range(CATEGORIES)]
        fields = Fields([f"I{i + 1}" for i in range(INTEGERS)], dict(zip(names, ids.cardinalities, strict=True)))

        def rows(path: Path) -> Rows:
            dense, values, label = read_piece(path, *Rows._fields)
            return Rows(dense, ids(values), label)

        join_pieces(output, paths, rows, fields, ", ".join(map(str, inputs)))


class Buckets:
    """Ids by remainder; 0 for a missing one."""

    def __init__(self, buckets: int) -> None:
        self._buckets = buckets
        self.cardinalities = [buckets] * CATEGORIES

    def __call__(self, values: Array) -> Array:
        """[rows, CATEGORIES] values to ids, int32."""
        return np.where(values == MISSING, 0, 1 + values % (self._buckets - 1)).astype(np.int32)


def parse(block: Block) -> Piece:
    """The rows of some lines; categorical: the categories' values, int64, or `MISSING`. Bad lines are counted."""
    lines = block.lines()
    good = np.array([_LINE.fullmatch(line) is not None for line in lines])
    cells = np.array(b"\t".join(line for line, fine in zip(lines, good, strict=True) if fine).split(b"\t"))
    cells = cells.reshape(-1, COLUMNS) if good.any() else np.empty((0, COLUMNS), "S1")
    quotes = [quote(block.file, block.line + i, _reason(lines[i]), lines[i]) for i in np.flatnonzero(~good).tolist()]
    return {
        "dense": _logarithms(cells[:, 1 : 1 + INTEGERS]),
        "categorical": _values(cells[:, 1 + INTEGERS :]),
        "label": cells[:, 0].astype(np.uint8),
        "validation": in_validation(block.row + np.flatnonzero(good)),
    } | bad_ones(quotes)


def _logarithms(cells: Array) -> Array:
    integers = np.where(cells == b"", b"0", cells).astype(np.int64)
    return np.log1p(np.maximum(integers, 0)).astype(np.float32)


def _values(cells: Array) -> Array:
    missing = cells == b""
    digits = b"".join(np.where(missing, b"00000000", cells).ravel().tolist())
    values = np.frombuffer(bytes.fromhex(digits.decode()), ">u4").reshape(cells.shape)
    return np.where(missing, MISSING, values.astype(np.int64))


def _reason(line: bytes) -> str:
    cells = line.split(b"\t")
    if len(cells) != COLUMNS:
        return f"{len(cells)} columns instead of {COLUMNS}"
    column, kind = next((i, kind) for i, kind in enumerate(_KINDS) if not re.fullmatch(kind, cells[i]))
    return f"column {column + 1} is {cells[column][:20]!r}, not {_EXPECTED[kind]}"
