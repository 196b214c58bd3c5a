"""The world and its groups: who trains with whom. The only file that imports Horovod."""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from hpcdistill.distributed.launch import start_mpi
from hpcdistill.errors import UserError
from hpcdistill.losses.vocab_parallel import VocabularyShard

if TYPE_CHECKING:
    from mpi4py import MPI

T = TypeVar("T")


@dataclass(frozen=True)
class Groups:
    """This process's place among a few groups of ranks, one model each.

    Either all groups make up one world, or each is a world of its own. A group's ranks are neighbours in the world, so
    that they share nodes.
    """

    world: MPI.Intracomm
    comm: MPI.Comm
    """The ranks of this group; for everything but gradients, which travel through Horovod's own."""
    sizes: tuple[int, ...]
    """Ranks of each of this world's groups."""
    device: torch.device
    count: int
    """How many groups there are, in all worlds."""
    first: int = 0
    """The number of this world's first group."""

    @classmethod
    def create(cls, count: int, sizes: Sequence[int] | None = None, group: int | None = None) -> Groups:
        """Split the world into `count` groups, or take it for one of them; one Horovod each.

        Collective over the world, once per process.

        Args:
            count: how many groups.
            sizes: ranks of each; None for as many in each.
            group: which of the groups this world is; None if it is all of them.

        Raises:
            UserError: the world does not split evenly or is not the sum of `sizes`, MPI grants too low a thread
                level, or a wrong PMI has made N worlds of one rank.
        """
        # Importing MPI initialises it, so only those who train pay for it and need it.
        start_mpi()
        import horovod.torch as hvd
        from mpi4py import MPI

        world = MPI.COMM_WORLD
        require_one_world()
        require_thread_multiple()
        device = local_device(world)
        if group is None:
            groups = cls.split(world, _sizes(world.size, count, sizes), device)
        else:
            groups = cls.alone(world, group, count, device)
        # Not process sets: with those a stopped rank of one group stalls every group.
        hvd.init(comm=groups.comm)
        return groups

    @classmethod
    def split(cls, world: MPI.Intracomm, sizes: tuple[int, ...], device: torch.device) -> Groups:
        """Make the first `sizes[0]` ranks of the world group 0, and so on, without Horovod. Collective over it."""
        return cls(world, world.Split(_group_of(world.rank, sizes), world.rank), sizes, device, len(sizes))

    @classmethod
    def alone(cls, world: MPI.Intracomm, group: int, count: int, device: torch.device) -> Groups:
        """Make the world one group of those of several worlds, without Horovod. Collective over it."""
        return cls(world, world.Dup(), (world.size,), device, count, first=group)

    @property
    def group(self) -> int:
        """Which of them this process belongs to."""
        return self.group_of(self.world.rank)

    def group_of(self, world_rank: int) -> int:
        """Which group a rank of this world belongs to."""
        return self.first + _group_of(world_rank, self.sizes)

    def leader_of(self, group: int) -> int:
        """The rank in this world of a group's rank 0."""
        return sum(self.sizes[: group - self.first])

    @property
    def rank(self) -> int:
        """This process's number inside its group."""
        return self.comm.rank

    @property
    def size(self) -> int:
        """Ranks of this group."""
        return self.comm.size

    @property
    def is_leader(self) -> bool:
        """Whether this is rank 0 of its group."""
        return self.comm.rank == 0

    @property
    def peers(self) -> list[int]:
        """The other groups."""
        return [group for group in range(self.count) if group != self.group]

    def distribute(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> torch.optim.Optimizer:
        """`optimizer` with gradients averaged over the group by Horovod before each step."""
        import horovod.torch as hvd

        distributed: torch.optim.Optimizer = hvd.DistributedOptimizer(
            optimizer, named_parameters=model.named_parameters()
        )
        return distributed

    def broadcast(self, model: nn.Module) -> None:
        """Give every rank of the group the leader's parameters and buffers.

        The optimizer needs no broadcast: its state is empty at the start, and on a restart every rank has read
        the same checkpoint. (Horovod's own broadcast would run a step to create the state first.)
        """
        import horovod.torch as hvd

        hvd.broadcast_parameters(model.state_dict(), root_rank=0)

    def vocabulary_shard(self, classes: int) -> VocabularyShard:
        """For `linear_codistillation_loss`, when this group's ranks have `classes` rows each of a head. Collective.

        Gradients are summed by Horovod. The logsumexp of a few tokens goes through the communicator that Horovod was
        given: a hundredth of a millisecond, and Horovod's own allreduce waits a millisecond for the next of its cycles.

        What a rank's rows get must not be averaged with other rows: give them an optimizer that is not distributed.
        """
        import horovod.torch as hvd

        sizes = self.comm.allgather(classes)
        return VocabularyShard(
            first=sum(sizes[: self.rank]),
            classes=sum(sizes),
            gather=self._gather,
            sum_=lambda tensor: hvd.allreduce_(tensor, op=hvd.Sum),
        )

    def _gather(self, tensor: Tensor) -> Tensor:
        mine = tensor.cpu().numpy()
        everyone = np.empty((self.size, *mine.shape), mine.dtype)
        self.comm.Allgather(mine, everyone)
        return torch.from_numpy(everyone).to(tensor.device)

    def sum(self, value: T) -> T:
        """The sum of what can be added by `+`, over the group. Collective over the group."""
        total: T = self.comm.allreduce(value)
        return total

    def require_same(self, name: str, value: str) -> None:
        """Refuse to go on where `value` is not the same on all ranks. Collective over the world.

        Raises:
            UserError: naming the first rank that differs from rank 0; on every rank.
        """
        values = self.world.allgather(value)
        for rank, other in enumerate(values):
            if other != values[0]:
                raise UserError(
                    f"{name} differs between ranks: {values[0]} on world rank 0, {other} on rank {rank}; give every "
                    "node the same"
                )

    def from_leader(self, make: Callable[[], T]) -> T:
        """What the leader's `make()` returned, or the `UserError` it raised, on every rank of the group."""
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


def require_same_settings(settings: dict[str, Any]) -> None:
    """Refuse ranks that have been told different things: some would wait for ever for what others never do.

    Collective over the world; the first thing that ranks do together.

    Args:
        settings: what this rank has been told, by name; values that JSON can express.

    Raises:
        UserError: naming the first setting that differs, and both values; on every rank.
    """
    start_mpi()
    from mpi4py import MPI

    require_one_world()
    world = MPI.COMM_WORLD
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).digest()
    if len(set(world.allgather(digest))) == 1:
        return
    first, *others = world.allgather(settings)
    for rank, other in enumerate(others, start=1):
        for name in sorted({*first, *other}):
            mine, theirs = (each.get(name, "not set") for each in (first, other))
            if mine != theirs:
                raise UserError(
                    f"{name} differs between ranks: {mine} on world rank 0, {theirs} on rank {rank}; give all ranks "
                    "the same options and configuration file, or make each group a job of its own (--group)"
                )


def require_one_world() -> None:
    """Raise a `UserError` where srun started several ranks and MPI made of each a world of its own."""
    from mpi4py import MPI

    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if MPI.COMM_WORLD.size == 1 and tasks > 1:
        raise UserError(
            f"srun started {tasks} tasks but each sees an MPI world of one rank: the PMI plugin does not fit this "
            "MPI; use srun --mpi=pmi2 for MPICH, --mpi=pmix for Open MPI, or start with mpirun"
        )


def require_thread_multiple() -> None:
    """Raise a `UserError` where MPI does not let several threads call it at once."""
    from mpi4py import MPI

    if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        raise UserError(
            "MPI does not grant MPI_THREAD_MULTIPLE, which Horovod beside one-sided windows needs; unset "
            f"MPI4PY_RC_THREAD_LEVEL (now {os.environ.get('MPI4PY_RC_THREAD_LEVEL', 'unset')}) or use an MPI built "
            "with thread support"
        )


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


def local_device(world: MPI.Intracomm) -> torch.device:
    """The GPU that this rank trains on: a node's are dealt out to its ranks in order, several of which may share one.

    Collective over the world.

    Raises:
        UserError: some ranks see a GPU and others do not; on every rank.
    """
    seen = world.allgather(torch.cuda.is_available())
    if not any(seen):
        return torch.device("cpu")
    if not all(seen):
        raise UserError(
            f"world rank {seen.index(True)} sees a GPU, rank {seen.index(False)} sees none; give one to every rank "
            "(sbatch --gpus-per-node), or to none (CUDA_VISIBLE_DEVICES=)"
        )
    from mpi4py import MPI

    node = world.Split_type(MPI.COMM_TYPE_SHARED)
    device = torch.device("cuda", node.rank % torch.cuda.device_count())
    node.Free()
    torch.cuda.set_device(device)
    return device
