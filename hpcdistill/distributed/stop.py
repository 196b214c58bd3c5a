"""Orderly stop: after a signal to any rank, all ranks of the group agree on the same last step."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from hpcdistill.distributed.communicator import Communicator, Request

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
"""Signals that request a stop: Ctrl-C; preemption, `scancel`, `slurm/launch.sh`; `sbatch --signal`."""


class StopRequest:
    """Record of the signals that request a stop; a context manager, inside which the signals do nothing else."""

    def __init__(self) -> None:
        self._received = False
        self._vote: tuple[np.ndarray[Any, Any], Request] | None = None
        self._former: dict[int, Any] = {}

    def agreed(self, comm: Communicator) -> bool:
        """Return whether any rank of `comm` had received a signal at the previous call; the same on all ranks.

        Collective over `comm`. A small allreduce combines the ranks' records; it has until the next call to complete,
        so no rank waits for it.
        """
        agreed = self._count()
        mine = np.array([self._received], np.int32)
        votes = np.empty_like(mine)
        self._vote = votes, comm.Iallreduce(mine, votes)
        return agreed

    def agreed_now(self, comm: Communicator) -> bool:
        """Return whether any rank of `comm` has received a signal until now; the same on all ranks.

        Collective over `comm`; all ranks wait for the answer.
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
