"""Interface of a communicator: the collective operations by which ranks work together, with MPI or without it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

T = TypeVar("T")


class Request(Protocol):
    """Collective operation that has begun."""

    def Wait(self) -> object:  # noqa: N802 - the name of MPI
        """Wait until the operation is complete on this rank."""


class Communicator(Protocol):
    """Ranks with collective operations among them, in the names of mpi4py; communicators of MPI satisfy it as they are.

    `TorchCommunicator` needs no MPI, and `SingleProcess` no other rank. All ranks call the same methods in the same
    order, each from one thread. Methods in lower case send any Python object; the others send a contiguous array of
    numpy, of the same shape and dtype on all ranks.
    """

    @property
    def rank(self) -> int:
        """Number of this process among the ranks, from 0."""

    @property
    def size(self) -> int:
        """Number of ranks."""

    def allgather(self, value: T, /) -> list[T]:
        """Return the values of all ranks."""

    def gather(self, value: T, /) -> list[T] | None:
        """Return the values of all ranks on rank 0, and None on the others."""

    def allreduce(self, value: T, /) -> T:
        """Return the sum of the values of all ranks."""

    def bcast(self, value: T, /) -> T:
        """Return rank 0's value."""

    def Barrier(self) -> None:  # noqa: N802
        """Wait until all ranks have called this."""

    def Bcast(self, values: Array, /) -> None:  # noqa: N802
        """Overwrite `values` with rank 0's."""

    def Ibcast(self, values: Array, /) -> Request:  # noqa: N802
        """Begin `Bcast`; `values` belongs to the operation until it is complete."""

    def Iallreduce(self, values: Array, total: Array, /) -> Request:  # noqa: N802
        """Begin to write the sum over all ranks of `values` into `total`; both belong to the operation until then."""

    def Split(self, color: int, /) -> Communicator:  # noqa: N802
        """Return the communicator of the ranks that give the same `color`, in the same order as here."""
