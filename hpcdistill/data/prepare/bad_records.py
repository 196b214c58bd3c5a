"""Bad records of the input: counted, quoted, and passed over up to a maximum number."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hpcdistill.data.prepare.pieces import Piece, read_piece
from hpcdistill.errors import UserError

logger = logging.getLogger(__name__)

QUOTES = 3


def bad_arrays(quotes: Sequence[str]) -> Piece:
    """Return the arrays of a piece that describe its bad records: their number, and quotations of the first few."""
    return {
        "bad": np.array(len(quotes)),
        "quotes": np.array([os.fsencode(quote) for quote in quotes[:QUOTES]], "S1000"),
    }


def collect(paths: Iterable[Path], max_bad: int, things: str) -> list[Path]:
    """Return all pieces, after checking that they have at most `max_bad` bad records; warn of those that they have.

    Args:
        paths: the pieces, which are read as they come.
        max_bad: maximum number of bad records of all pieces together.
        things: name of the records in messages, in the plural.

    Raises:
        UserError: there are more bad records; raised at the first piece with which there are too many.
    """
    collected, bad = count_bad(paths, max_bad, things)
    warn_of_bad(*bad, things)
    return collected


class Bad(NamedTuple):
    """Bad records of all pieces together."""

    number: int = 0
    quotes: Sequence[str] = ()
    """Quotations of the first few."""


def count_bad(paths: Iterable[Path], max_bad: int, things: str) -> tuple[list[Path], Bad]:
    """Return all pieces and their bad records; like `collect`, but without a warning."""
    collected, bad = [], Bad()
    for path in paths:
        collected.append(path)
        number, quotes = read_piece(path, "bad", "quotes")
        bad = Bad(bad.number + int(number), [*bad.quotes, *map(os.fsdecode, quotes)][:QUOTES])
        require_few(*bad, max_bad, things)
    return collected, bad


def require_few(count: int, quotes: Sequence[str], max_bad: int, things: str) -> None:
    """Check that at most `max_bad` of the records, called `things`, are bad.

    Raises:
        UserError: more are bad; the message has the first of `quotes`.
    """
    if count > max_bad:
        raise UserError(
            "\n  ".join([f"bad {things}: {count} so far, the first of them", *quotes[:QUOTES]])
            + f"\ncorrect them, or pass over up to N bad {things} with --max-bad=N"
        )


def warn_of_bad(count: int, quotes: Sequence[str], things: str) -> None:
    """Warn of bad records, called `things`, that were passed over, if there were any."""
    if count:
        logger.warning("\n  ".join([f"passed over bad {things}: {count}, the first of them", *quotes[:QUOTES]]))
