"""Groups of ranks: which ranks train which model."""

from __future__ import annotations

import logging
import sys
from bisect import bisect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

from hpcdistill.distributed.checks import is_of_mpi
from hpcdistill.distributed.device import local_device, single_device
from hpcdistill.distributed.gradients import GradientBackend, WaitsInBackward, start_backend
from hpcdistill.distributed.launch import end_job, was_launched
from hpcdistill.distributed.one_rank import OneRank
from hpcdistill.distributed.single import SingleProcess
from hpcdistill.distributed.world import start_world
from hpcdistill.errors import UserError

if TYPE_CHECKING:
    from hpcdistill.distributed.communicator import Communicator
    from hpcdistill.losses.vocab_parallel import VocabParallel

logger = logging.getLogger(__name__)

T = TypeVar("T")
Model = TypeVar("Model", bound=nn.Module)
Optimizer = TypeVar("Optimizer", bound=torch.optim.Optimizer)


@dataclass(frozen=True)
class Groups:
    """Place of this process among groups of ranks, each of which trains one model.

    All groups are in one MPI world, or each group is a world (a job) of its own. The ranks of a group are neighbours in
    the world, so that they share nodes.
    """

    world: Communicator
    """Communicator of all ranks of this job."""
    comm: Communicator
    """Communicator of this group; gradients travel by the gradient backend."""
    sizes: tuple[int, ...]
    """Number of ranks in each group of this world."""
    device: torch.device
    """Device of this rank."""
    count: int
    """Number of groups, in all worlds."""
    first: int = 0
    """Number of this world's first group."""
    backend: GradientBackend = field(default_factory=OneRank)
    """Gradient backend of this group."""

    @classmethod
    def create(
        cls, count: int, sizes: Sequence[int] | None = None, group: int | None = None, gradients: str | None = None
    ) -> Groups:
        """Split the ranks of the job, its world, into groups, for a training script.

        Collective over the world, once per process. From then on an exception that a rank does not catch ends all ranks
        of the job, which would otherwise wait for it forever: this sets `sys.excepthook`.

        The ranks communicate by MPI; ranks of torchrun, and of srun where there is no MPI, by torch.distributed.
        A process that no launcher has started becomes one group of one rank, without MPI and Horovod, and a warning
        says so: the script runs unchanged on a laptop.

        Args:
            count: number of groups; the ranks of a group follow each other in the world.
            sizes: number of ranks in each group; None for groups of equal size.
            group: number of the group that this world is, where each group is a job of its own; else None.
            gradients: backend that averages gradients inside each group: "horovod"; "torch" for torch's
                DistributedDataParallel; None for "horovod" where the ranks communicate by MPI, and "torch" elsewhere.

        Raises:
            UserError: the world does not split evenly or is not the sum of `sizes`; MPI grants too low a thread level;
                the PMI plugin of srun does not fit this MPI; `gradients` needs a package that is not installed, or MPI
                where there is none.
        """
        if group is None and not was_launched():
            if count > 1:
                logger.warning(
                    f"no launcher started this process, so it trains one model without peers instead of {count}; "
                    "start it with mpirun, srun or torchrun to codistil"
                )
            return cls.single()
        sys.excepthook = lambda _, error, __: end_job(error, launched=True)
        return cls.from_world(count, sizes, group, gradients)

    @classmethod
    def from_world(
        cls, count: int, sizes: Sequence[int] | None = None, group: int | None = None, gradients: str | None = None
    ) -> Groups:
        """Split the world into groups, for a program that ends the job itself when a rank fails (`end_job`).

        It takes the arguments and raises the errors of `create`, and starts MPI even for one rank, where there is MPI.
        """
        try:
            world = start_world()
            device = local_device(world)
            if group is None:
                groups = cls.split(world, _sizes(world.size, count, sizes), device)
            else:
                groups = cls.alone(world, group, count, device)
            name = gradients or ("horovod" if groups.has_mpi else "torch")
            return replace(groups, backend=start_backend(name, groups.comm, device))
        except ModuleNotFoundError as error:
            package, *_ = str(error.name).split(".")
            other = ", or use --gradients=torch" if package == "horovod" else ""
            raise UserError(
                f"groups of ranks need {package}, which is not installed; run make setup (docs/cluster.md){other}"
            ) from error

    @classmethod
    def split(cls, world: Communicator, sizes: tuple[int, ...], device: torch.device) -> Groups:
        """Make the first `sizes[0]` ranks of the world group 0, and so on, without a gradient backend.

        Collective over the world.
        """
        return cls(world, world.Split(_group_of(world.rank, sizes)), sizes, device, len(sizes))

    @classmethod
    def alone(cls, world: Communicator, group: int, count: int, device: torch.device) -> Groups:
        """Make the world one of `count` groups that are worlds of their own, without a gradient backend.

        Collective over the world.
        """
        return cls(world, world.Split(0), (world.size,), device, count, first=group)

    @classmethod
    def single(cls) -> Groups:
        """Make this process one group of one rank, without MPI and Horovod."""
        comm = SingleProcess()
        return cls(comm, comm, (1,), single_device(), count=1)

    @property
    def is_single(self) -> bool:
        """True in a process that works with no other."""
        return isinstance(self.world, SingleProcess)

    @property
    def has_mpi(self) -> bool:
        """True where the ranks of this world communicate by MPI."""
        return is_of_mpi(self.world)

    @property
    def group(self) -> int:
        """Number of this process's group."""
        return self.group_of(self.world.rank)

    def group_of(self, world_rank: int) -> int:
        """Return the number of the group of a rank of this world."""
        return self.first + _group_of(world_rank, self.sizes)

    def leader_of(self, group: int) -> int:
        """Return the rank in this world of a group's rank 0."""
        return sum(self.sizes[: group - self.first])

    @property
    def rank(self) -> int:
        """Rank of this process in its group."""
        return self.comm.rank

    @property
    def size(self) -> int:
        """Number of ranks in this group."""
        return self.comm.size

    @property
    def is_leader(self) -> bool:
        """True on rank 0 of each group."""
        return self.comm.rank == 0

    @property
    def peers(self) -> list[int]:
        """Numbers of the other groups."""
        return [group for group in range(self.count) if group != self.group]

    def distribute(self, model: Model, optimizer: Optimizer, micro_batches: int = 1) -> tuple[Model, Optimizer]:
        """Return model and optimizer for data-parallel training inside the group. Collective over the group.

        The ranks of the group get the leader's parameters and buffers; the optimizer returned averages gradients over
        the group, while the backward pass runs, before each step. Make learning rate schedulers from it. With
        `gradients="torch"` the model returned is `model` inside torch's DistributedDataParallel: call that one, and
        save its attribute `module`.

        Args:
            model: the model, on `device`.
            optimizer: any optimizer of torch of the model's parameters.
            micro_batches: backward passes before each step (gradient accumulation).
        """
        return self.backend.distribute(model, optimizer, micro_batches)

    def averaged_gradients(self, optimizer: torch.optim.Optimizer) -> AbstractContextManager[None]:
        """Return a context in which the gradients are those of the group, to be clipped or looked at before the step.

        Collective over the group. Entering it waits for the averages; `optimizer.step()` belongs into the block.

        ```python
        loss.backward()
        with groups.averaged_gradients(optimizer):
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        optimizer.zero_grad()
        ```

        Args:
            optimizer: the optimizer that `distribute` has returned.
        """
        return self.backend.averaged_gradients(optimizer)

    def on_wait(self, callback: Callable[[], None]) -> None:
        """Call `callback` in each backward pass that waits for averages at its end, when that wait begins.

        Backends whose backward passes do not wait never call it.
        """
        if isinstance(self.backend, WaitsInBackward):
            self.backend.on_wait = callback

    def vocab_parallel(self, classes: int) -> VocabParallel:
        """Return the `vocab_parallel` of `linear_codistillation_loss` for a head split over the ranks of the group.

        Collective over the group. The gradients of a rank's own rows must not be averaged with those of other ranks:
        give these rows an optimizer that is not distributed.

        Args:
            classes: number of rows of the head on this rank.
        """
        return self.backend.vocab_parallel(classes)

    def sum(self, value: T) -> T:
        """Return the sum over the group of values that `+` can add. Collective over the group."""
        total: T = self.comm.allreduce(value)
        return total

    def require_same(self, name: str, value: str) -> None:
        """Check that `value` is the same on all ranks. Collective over the world.

        Raises:
            UserError: it differs; names the first rank that differs from rank 0; on every rank.
        """
        values = self.world.allgather(value)
        for rank, other in enumerate(values):
            if other != values[0]:
                raise UserError(
                    f"{name} differs between ranks: {values[0]} on world rank 0, {other} on rank {rank}; give every "
                    "rank the same"
                )

    def from_leader(self, make: Callable[[], T]) -> T:
        """Return the leader's `make()` on every rank, or raise its `UserError` there. Collective over the group."""
        outcome: T | UserError | None = None
        if self.is_leader:
            try:
                outcome = make()
            except UserError as error:
                outcome = error
        outcome = self.comm.bcast(outcome)
        if isinstance(outcome, UserError):
            raise outcome
        return outcome  # type: ignore[return-value]


def _sizes(ranks: int, groups: int, wanted: Sequence[int] | None) -> tuple[int, ...]:
    if wanted is None and ranks % groups:
        raise UserError(
            f"{ranks} ranks cannot be split evenly into groups = {groups}; start a multiple of {groups} ranks, "
            f"set --groups to a divisor of {ranks}, or give each group its own number by --group_sizes"
        )
    sizes = tuple(wanted or (ranks // groups,) * groups)
    if sum(sizes) != ranks:
        raise UserError(
            f"group_sizes = {','.join(map(str, sizes))} takes {sum(sizes)} ranks, but {ranks} were started; "
            f"start {sum(sizes)} ranks or change --group_sizes"
        )
    return sizes


def _group_of(world_rank: int, sizes: Sequence[int]) -> int:
    return bisect(list(accumulate(sizes)), world_rank)
