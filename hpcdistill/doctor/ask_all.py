"""Tasks that all ranks run, with their answers or problems, so that no rank is left waiting."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from mpi4py import MPI

from hpcdistill.doctor.check import Result, Status, deadline
from hpcdistill.errors import UserError

T = TypeVar("T")

TASK_SECONDS = 100.0  # longer than any task that ends by itself


@dataclass(frozen=True)
class Answer(Generic[T]):
    """Return value of a rank's task, or the problem that it met."""

    place: str
    """Rank and node."""
    value: T | None
    problem: str = ""


def place() -> str:
    """Return the number of this rank and the name of its node."""
    return f"rank {MPI.COMM_WORLD.rank} on {os.uname().nodename}"


def ask_all(task: Callable[[], T]) -> list[Answer[T]]:
    """Run `task` on each rank and return all answers, in the order of ranks. Collective over the world.

    An exception becomes an answer with a problem. A task that hangs ends the job after `TASK_SECONDS`.
    """
    here = place()
    with deadline(TASK_SECONDS, f"a check on {here}"):
        try:
            answer = Answer(here, task())
        except UserError as error:
            answer = Answer(here, None, str(error))
        except Exception as error:
            answer = Answer(here, None, f"{type(error).__name__}: {error}")
    return MPI.COMM_WORLD.allgather(answer)


def have_failed(answers: Sequence[Answer[Any]]) -> bool:
    """Return whether any rank met a problem."""
    return any(answer.problem for answer in answers)


def summarize(answers: Sequence[Answer[T]], found: str, remedy: str) -> Result:
    """Return a failure where there is a problem, else a success.

    Rank 0 reports the first problem of any rank; each other rank reports its own only.

    Args:
        answers: those of all ranks.
        found: text of a success.
        remedy: for a failure.
    """
    rank = MPI.COMM_WORLD.rank
    reported = answers if rank == 0 else [answers[rank]]
    problems = [f"{answer.place}: {answer.problem}" for answer in reported if answer.problem]
    if problems:
        others = f"; {len(problems) - 1} other rank(s) failed too" if len(problems) > 1 else ""
        return Result(Status.FAIL, problems[0] + others, remedy)
    return Result(Status.OK, found)


def slowest(answers: Sequence[Answer[float]]) -> str:
    """Describe the longest of all ranks' times; values are seconds."""
    worst = max(answers, key=lambda answer: answer.value or 0.0)
    return f"{1e3 * (worst.value or 0.0):.1f} ms at worst, {worst.place}"
