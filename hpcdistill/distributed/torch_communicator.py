"""The communicator of ranks without MPI, over a gloo process group of torch.distributed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import distributed as dist

from hpcdistill.distributed.default_group import TIMEOUT, init_default_group, summary
from hpcdistill.errors import UserError

if TYPE_CHECKING:
    from hpcdistill.distributed.communicator import Array
    from hpcdistill.distributed.rendezvous import Rendezvous

T = TypeVar("T")


def start(meeting: Rendezvous) -> TorchCommunicator:
    """Return the communicator of all ranks of the job. Collective over them, once per process.

    If the process has initialised torch.distributed already, the ranks are those of its default process group.
    Otherwise the process group made here becomes the default one.

    Raises:
        UserError: the ranks cannot connect.
    """
    if dist.is_initialized():
        return TorchCommunicator(dist.new_group(timeout=TIMEOUT, backend="gloo"))
    try:
        group = init_default_group(
            "gloo", init_method=f"tcp://{meeting.address}", world_size=meeting.size, rank=meeting.rank
        )
    except RuntimeError as error:
        raise UserError(
            f"rank {meeting.rank} cannot meet the {meeting.size} ranks of this job at {meeting.address} "
            f"({summary(error)}); set MASTER_ADDR and MASTER_PORT, the same for all ranks, to a host that all reach "
            "and a port that is free there, and GLOO_SOCKET_IFNAME to the network interface that joins the nodes"
        ) from error
    return TorchCommunicator(group)


class TorchCommunicator:
    """Communicator over a process group of torch.distributed; see `Communicator`.

    A collective operation raises a `UserError` when another rank has ended, or has not joined it within the timeout of
    the process group.

    Attributes:
        process_group: process group of these ranks, with the backend gloo.
        rank: number of this process among the ranks.
        size: number of ranks.
    """

    def __init__(self, process_group: dist.ProcessGroup) -> None:
        self.process_group = process_group
        self.rank = dist.get_rank(process_group)
        self.size = dist.get_world_size(process_group)

    def allgather(self, value: T) -> list[T]:
        """See `Communicator.allgather`."""
        values: list[Any] = [None] * self.size
        with _explained():
            dist.all_gather_object(values, value, group=self.process_group)
        return values

    def gather(self, value: T) -> list[T] | None:
        """See `Communicator.gather`."""
        values: list[Any] | None = None if self.rank else [None] * self.size
        with _explained():
            dist.gather_object(value, values, group=self.process_group, group_dst=0)
        return values

    def allreduce(self, value: T) -> T:
        """See `Communicator.allreduce`. The order of the additions is the same on all ranks."""
        total, *others = self.allgather(value)
        for other in others:
            total = total + other  # type: ignore[operator]
        return total

    def bcast(self, value: T) -> T:
        """See `Communicator.bcast`."""
        values = [value]
        with _explained():
            dist.broadcast_object_list(values, group=self.process_group, group_src=0)
        return values[0]

    def Barrier(self) -> None:  # noqa: N802 - the names of MPI
        """See `Communicator.Barrier`."""
        with _explained():
            dist.barrier(self.process_group)

    def Bcast(self, values: Array) -> None:  # noqa: N802
        """See `Communicator.Bcast`."""
        self.Ibcast(values).Wait()

    def Ibcast(self, values: Array) -> TorchRequest:  # noqa: N802
        """See `Communicator.Ibcast`."""
        with _explained():
            work = dist.broadcast(torch.from_numpy(values), group=self.process_group, group_src=0, async_op=True)
        return TorchRequest(work)

    def Iallreduce(self, values: Array, total: Array) -> TorchRequest:  # noqa: N802
        """See `Communicator.Iallreduce`."""
        total[...] = values
        with _explained():
            work = dist.all_reduce(torch.from_numpy(total), group=self.process_group, async_op=True)
        return TorchRequest(work)

    def Split(self, color: int) -> TorchCommunicator:  # noqa: N802
        """See `Communicator.Split`. Collective over all ranks of the job."""
        colors = self.allgather((color, dist.get_rank()))
        with _explained():
            for each in sorted({other for other, _ in colors}):  # each rank takes part in making every process group
                made = dist.new_group([rank for other, rank in colors if other == each], TIMEOUT, "gloo")
                if each == color:
                    mine = made
        return TorchCommunicator(mine)


class TorchRequest:
    """Operation of torch.distributed that has begun."""

    def __init__(self, work: dist.Work) -> None:
        self._work = work

    def Wait(self) -> None:  # noqa: N802
        """Wait until the operation is complete on this rank."""
        with _explained():
            self._work.wait()


@contextmanager
def _explained() -> Iterator[None]:
    """Raise the errors of gloo as a `UserError`."""
    try:
        yield
    except RuntimeError as error:
        raise UserError(
            f"another rank of this job has ended or does not answer ({summary(error)}); its own message, if there "
            "is one, says why"
        ) from error
