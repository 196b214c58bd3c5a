"""Labels with two values, and the choice of the one that is 1."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from hpcdistill.errors import UserError

SHOWN = 10
OPPOSITES = {
    *[("no", "yes"), ("n", "y"), ("false", "true"), ("f", "t"), ("off", "on"), ("-", "+"), ("neg", "pos")],
    *[("negative", "positive"), ("absent", "present"), ("fail", "pass"), ("bad", "good"), ("ham", "spam")],
}
"""Pairs of words, of which the second means 1."""


class Label(NamedTuple):
    """Column to be predicted."""

    name: str
    one: str
    """Value that is 1."""
    zero: str
    is_guessed: bool
    """True if the choice follows from the alphabetical order only."""

    def is_one(self, value: str) -> bool:
        """Return whether a value, one of the two in any notation, is 1."""
        return _meaning(value) == _meaning(self.one)


def choose_positive(name: str, values: Iterable[str], positive: str | None) -> Label:
    """Choose which of a label's values is 1: the larger of two numbers, or the last of two words in order.

    Args:
        name: name of the column.
        values: all values of the column; `1` and `1.0` are equal.
        positive: value that is 1, if the user has chosen it.

    Raises:
        UserError: there are not two values, or `positive` is not one of them.
    """
    by_meaning = {_meaning(value): value for value in sorted(values, reverse=True)}
    if len(by_meaning) != 2:
        found = sorted(by_meaning.values(), key=_order)
        listed = ", ".join(map(repr, found[:SHOWN])) + ", …" * (len(found) > SHOWN)
        raise UserError(
            f"--label {name!r} must have two values, and it has {listed or 'none'}; choose another column, or keep two "
            "values of this one"
        )
    zero, one = sorted(by_meaning.values(), key=_order)
    words = (zero.casefold(), one.casefold())
    if words[::-1] in OPPOSITES:
        zero, one, words = one, zero, words[::-1]
    if positive is not None:
        if _meaning(positive.strip()) not in by_meaning:
            raise UserError(f"--positive {positive!r} is not a value of {name!r}; its values are {zero!r}, {one!r}")
        if _meaning(positive.strip()) == _meaning(zero):
            zero, one = one, zero
    is_known = positive is not None or words in OPPOSITES or None not in (_number(zero), _number(one))
    return Label(name, one, zero, not is_known)


def _number(value: str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


def _meaning(value: str) -> float | str:
    number = _number(value)
    return value if number is None else number


def _order(value: str) -> tuple[bool, float, str, str]:
    number = _number(value)
    return (number is None, number or 0.0, value.casefold(), value)
