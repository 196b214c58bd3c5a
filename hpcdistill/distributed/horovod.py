"""The gradient backend: Horovod inside each group. The only file that imports Horovod."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from hpcdistill.losses.vocab_parallel import VocabParallel

if TYPE_CHECKING:
    from mpi4py import MPI

Optimizer = TypeVar("Optimizer", bound=torch.optim.Optimizer)


def start(comm: MPI.Comm) -> None:
    """Initialise Horovod among the ranks of a group. Collective over the group, once per process."""
    import horovod.torch as hvd

    # Not process sets: with those a stopped rank of one group stalls every group.
    hvd.init(comm=comm)


def broadcast_parameters(model: nn.Module) -> None:
    """Copy the leader's parameters and buffers to every rank. Collective over the group.

    The optimizer needs no broadcast: its state is empty at the start, and after a restart every rank has read the same
    checkpoint. (Horovod's own broadcast would run a step to create the state first.)
    """
    import horovod.torch as hvd

    hvd.broadcast_parameters(model.state_dict(), root_rank=0)


def average_gradients(model: nn.Module, optimizer: Optimizer, micro_batches: int = 1) -> Optimizer:
    """Wrap `optimizer` so that it averages the model's gradients over the group before each step.

    Args:
        model: the model whose parameters `optimizer` updates.
        optimizer: any optimizer of torch.
        micro_batches: backward passes before each step.
    """
    import horovod.torch as hvd

    distributed: Optimizer = hvd.DistributedOptimizer(
        optimizer, named_parameters=model.named_parameters(), backward_passes_per_step=micro_batches
    )
    return distributed


def vocab_parallel(comm: MPI.Comm, classes: int) -> VocabParallel:
    """Return the place of a rank's `classes` rows in a head that is split over the ranks of `comm`. Collective.

    Gradients are summed by Horovod. The logsumexp of a few tokens goes through `comm`: a hundredth of a millisecond,
    while Horovod's own allreduce waits a millisecond for its next cycle.
    """
    if comm.size == 1:
        return VocabParallel(0, classes, all_gather=lambda tensor: tensor[None], all_reduce=lambda _: None)
    import horovod.torch as hvd

    def all_gather(tensor: Tensor) -> Tensor:
        mine = tensor.cpu().numpy()
        gathered = np.empty((comm.size, *mine.shape), mine.dtype)
        comm.Allgather(mine, gathered)
        return torch.from_numpy(gathered).to(tensor.device)

    sizes = comm.allgather(classes)
    return VocabParallel(
        first_class=sum(sizes[: comm.rank]),
        classes=sum(sizes),
        all_gather=all_gather,
        all_reduce=lambda tensor: hvd.allreduce_(tensor, op=hvd.Sum),
    )
