"""What is told to the user: the one exception that is theirs to mend, and warnings."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from hpcdistill.output import say


class UserError(Exception):
    """Bad input. Its message names the value, what was expected and the remedy; no traceback is shown."""


def warn(message: str) -> None:
    """Say what went wrong but stops nothing."""
    say(f"hpcdistill: warning: {message}")


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return `" (did you mean 'x'?)"` for the known word nearest to a misspelt one, or nothing.

    Of words in sections, as `optimizer.lr`, the last part counts first: who knows an option by its own name may not
    know its section.
    """
    words = list(known)
    lasts = difflib.get_close_matches(_last(word), {_last(each) for each in words}, n=1, cutoff=0.75)
    alike = [each for each in words if _last(each) in lasts]
    near = difflib.get_close_matches(word, alike, n=1, cutoff=0) or difflib.get_close_matches(word, words, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _last(word: str) -> str:
    return word.lstrip("-").rpartition(".")[2]
