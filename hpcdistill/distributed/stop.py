"""Stopping in order: a signal asks, the group agrees, and the step that all its ranks have made is the last."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from mpi4py import MPI

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
"""Ctrl-C; preemption, `scancel` and `slurm/launch.sh`; what Slurm users ask for by `sbatch --signal` as a rule."""


class StopRequest:
    """Takes note of the signals that ask a run to stop; a context manager, inside which they do nothing else."""

    def __init__(self) -> None:
        self._received = False
        self._vote: tuple[np.ndarray[Any, Any], MPI.Request] | None = None
        self._former: dict[int, Any] = {}

    def agreed(self, comm: MPI.Comm) -> bool:
        """Whether any rank of `comm` had received such a signal when this was called last; the same answer on all.

        Collective over `comm`. What the ranks know is combined by a small allreduce that has until the next call to
        complete, so that nobody waits for it.
        """
        from mpi4py import MPI

        agreed = self._count()
        mine = np.array([self._received])
        self._vote = mine, comm.Iallreduce(MPI.IN_PLACE, mine, op=MPI.LOR)
        return agreed

    def agreed_now(self, comm: MPI.Comm) -> bool:
        """Return whether any rank of `comm` has received such a signal by now, the same on all ranks.

        Collective over `comm`; all wait for the answer.
        """
        agreed = self.agreed(comm)
        return self._count() or agreed

    def __enter__(self) -> StopRequest:
        self._former = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._count()
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _note(self, _: int, __: FrameType | None) -> None:
        self._received = True

    def _count(self) -> bool:
        if self._vote is None:
            return False
        votes, request = self._vote
        request.Wait()
        self._vote = None
        return bool(votes[0])
