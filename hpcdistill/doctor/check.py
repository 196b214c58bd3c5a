"""A check and its result: how it is run, bounded in time, and printed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

from hpcdistill.distributed.launch import end_job
from hpcdistill.errors import UserError

SETUP = "run `make setup`"


class Status(Enum):
    """Outcome of a check."""

    OK = "OK"
    OPTIONAL = "missing, optional"
    """Does not work, but training does without it."""
    FAIL = "FAIL"


@dataclass(frozen=True)
class Result:
    """Finding of a check: one row of the table."""

    status: Status
    found: str
    remedy: str = ""


Check = tuple[str, Callable[[], Result], str]
"""Name of a row; the function that checks; the usual remedy where that function raises."""


def run_check(check: Callable[[], Result], remedy: str) -> Result:
    """Return the result of a check, a failure if it raises.

    Args:
        check: the function that checks.
        remedy: the usual one; the message of a `UserError` holds its own.
    """
    try:
        return check()
    except UserError as error:
        return Result(Status.FAIL, str(error))
    except Exception as error:
        message = str(error).partition("\n")[0]
        return Result(Status.FAIL, f"{type(error).__name__}: {message}", remedy)


def row(name: str, result: Result) -> str:
    """Return the lines that show a result."""
    found = result.found.replace("\n", f"\n{'':<35}")
    text = f"{name:<16}{result.status.value:<19}{found}"
    return f"{text}\n{'':<16}remedy: {result.remedy}" if result.remedy else text


@contextmanager
def deadline(seconds: float, what: str) -> Iterator[None]:
    """End the job if the `with` block takes longer than `seconds`: ranks may wait there for one that has failed.

    Args:
        seconds: the limit.
        what: subject of the error message.
    """
    late = UserError(f"{what} has not ended in {seconds:g} s: it hangs, or waits for a rank that failed or is cut off")
    timer = threading.Timer(seconds, end_job, [late])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
