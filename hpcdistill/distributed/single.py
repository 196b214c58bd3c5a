"""The communicator of a process without other ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from hpcdistill.distributed.communicator import Array

T = TypeVar("T")


class SingleProcess:
    """Communicator of one rank, without MPI; see `Communicator`."""

    rank = 0
    size = 1

    def allgather(self, value: T) -> list[T]:
        """Return the values of all ranks."""
        return [value]

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks."""
        return [value]

    def allreduce(self, value: T) -> T:
        """Return the sum over all ranks."""
        return value

    def bcast(self, value: T) -> T:
        """Return rank 0's value."""
        return value

    def Barrier(self) -> None:  # noqa: N802 - the names of MPI
        """Wait for all ranks."""

    def Bcast(self, values: Array) -> None:  # noqa: N802
        """Overwrite `values` with rank 0's."""

    def Ibcast(self, values: Array) -> Complete:  # noqa: N802
        """Begin `Bcast`."""
        return Complete()

    def Iallreduce(self, values: Array, total: Array) -> Complete:  # noqa: N802
        """Write the sum over all ranks of `values` into `total`."""
        total[...] = values
        return Complete()

    def Split(self, color: int) -> SingleProcess:  # noqa: N802
        """Return the communicator of the ranks that give the same `color`."""
        return self


class Complete:
    """Request of an operation that is complete."""

    def Wait(self) -> None:  # noqa: N802
        """Return at once."""
