"""The gradient backend: Horovod inside each group. The only file that imports Horovod."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

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

    tensors = model.state_dict().items()
    # Horovod sends no bfloat16; the bytes are what matters.
    sent = {name: tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor for name, tensor in tensors}
    hvd.broadcast_parameters(sent, root_rank=0)


class WideBfloat16:
    """Compression for Horovod that averages bfloat16 gradients in float32, because it has no sum of bfloat16.

    Other gradients are averaged as they are. Each sum is rounded once, not at each addition.
    """

    @staticmethod
    def compress(tensor: Tensor) -> tuple[Tensor, torch.dtype]:
        """Return what is sent for a gradient, and the dtype of the gradient."""
        return tensor.float() if tensor.dtype == torch.bfloat16 else tensor, tensor.dtype

    @staticmethod
    def decompress(tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the average as a gradient of `dtype`."""
        return tensor.to(dtype)


def average_gradients(model: nn.Module, optimizer: Optimizer, micro_batches: int = 1) -> Optimizer:
    """Wrap `optimizer` so that it averages the model's gradients over the group before each step.

    Args:
        model: the model whose parameters `optimizer` updates.
        optimizer: any optimizer of torch.
        micro_batches: backward passes before each step.
    """
    import horovod.torch as hvd

    distributed: Optimizer = hvd.DistributedOptimizer(
        optimizer,
        named_parameters=model.named_parameters(),
        compression=WideBfloat16,
        backward_passes_per_step=micro_batches,
    )
    return distributed


@contextmanager
def averaged_gradients(optimizer: Any) -> Iterator[None]:
    """Wait for the averages of all gradients; in the block, `optimizer.step()` takes the gradients as they are.

    Args:
        optimizer: a result of `average_gradients`.
    """
    optimizer.synchronize()
    with optimizer.skip_synchronize():
        yield


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
