"""What of the input is bad: counted, quoted, and passed over up to a number."""

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
    """What a piece tells of what was bad: how many there were, and the first few of them."""
    return {
        "bad": np.array(len(quotes)),
        "quotes": np.array([os.fsencode(quote) for quote in quotes[:QUOTES]], "S1000"),
    }


def collect(paths: Iterable[Path], max_bad: int, things: str) -> list[Path]:
    """All pieces, once it is clear that they have no more bad `things` than `max_bad`; a warning tells of those.

    Raises:
        UserError: they have more. Raised at the first piece with which there are too many.
    """
    collected, bad = count_bad(paths, max_bad, things)
    warn_of_bad(*bad, things)
    return collected


class Bad(NamedTuple):
    """Bad things of all pieces together."""

    number: int = 0
    quotes: Sequence[str] = ()
    """The first few."""


def count_bad(paths: Iterable[Path], max_bad: int, things: str) -> tuple[list[Path], Bad]:
    """Return all pieces, and what was bad in them, without telling of it; otherwise as `collect`."""
    collected, bad = [], Bad()
    for path in paths:
        collected.append(path)
        number, quotes = read_piece(path, "bad", "quotes")
        bad = Bad(bad.number + int(number), [*bad.quotes, *map(os.fsdecode, quotes)][:QUOTES])
        require_few(*bad, max_bad, things)
    return collected, bad


def require_few(count: int, quotes: Sequence[str], max_bad: int, things: str) -> None:
    """See that there are no more bad `things` than `max_bad`.

    Raises:
        UserError: there are more; it quotes the first `quotes`.
    """
    if count > max_bad:
        raise UserError(
            "\n  ".join([f"bad {things}: {count} so far, the first of them", *quotes[:QUOTES]])
            + f"\nmend them, or pass over up to N such {things} with --max-bad=N"
        )


def warn_of_bad(count: int, quotes: Sequence[str], things: str) -> None:
    """Warn of the bad `things` that were passed over, if there were any."""
    if count:
        logger.warning("\n  ".join([f"passed over bad {things}: {count}, the first of them", *quotes[:QUOTES]]))
