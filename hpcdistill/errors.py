"""What is told to the user: the one exception that is theirs to mend, and warnings."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. Its message names the value, what was expected and the remedy; no traceback is shown."""


def warn(message: str) -> None:
    """Say what went wrong but stops nothing."""
    print(f"hpcdistill: warning: {message}", file=sys.stderr, flush=True)


def suggestion(word: str, known: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` for the known word nearest to a misspelt one, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
