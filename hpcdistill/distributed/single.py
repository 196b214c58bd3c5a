"""The communicator of a process that runs without MPI."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


class SingleProcess:
    """World of one rank with the collective methods of `MPI.Comm` that groups use on Python objects."""

    rank = 0
    size = 1

    def allgather(self, value: T) -> list[T]:
        """Return the values of all ranks."""
        return [value]

    def allreduce(self, value: T) -> T:
        """Return the sum over all ranks."""
        return value

    def bcast(self, value: T) -> T:
        """Return rank 0's value."""
        return value

    def Barrier(self) -> None:  # noqa: N802 - the name of MPI
        """Wait for all ranks."""
