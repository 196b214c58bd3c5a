"""Errors that the user can mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. Its message names the value, the expectation and the remedy; the program shows no traceback."""


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return `" (did you mean 'x'?)"` for the known word nearest to a misspelt one, or an empty string.

    For words in sections, such as `optimizer.lr`, the last part is compared first: a user who knows the name of an
    option may not know its section.
    """
    words = list(known)
    lasts = difflib.get_close_matches(_last(word), {_last(each) for each in words}, n=1, cutoff=0.75)
    alike = [each for each in words if _last(each) in lasts]
    near = difflib.get_close_matches(word, alike, n=1, cutoff=0) or difflib.get_close_matches(word, words, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _last(word: str) -> str:
    return word.lstrip("-").rpartition(".")[2]
