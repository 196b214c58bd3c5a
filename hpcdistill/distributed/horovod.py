"""The gradient backend "horovod". The only file of the package that trains with Horovod."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from hpcdistill.distributed.checks import require_mpi
from hpcdistill.distributed.device import require_own_gpu
from hpcdistill.distributed.gradients import register_backend
from hpcdistill.errors import UserError
from hpcdistill.losses.vocab_parallel import VocabParallel

if TYPE_CHECKING:
    from hpcdistill.distributed.communicator import Communicator

Model = TypeVar("Model", bound=nn.Module)
Optimizer = TypeVar("Optimizer", bound=torch.optim.Optimizer)


@register_backend("horovod")
class HorovodBackend:
    """Gradient backend that averages by Horovod, which hooks into the optimizer; see `GradientBackend`.

    On a GPU, train on the default stream: averages are not ordered with the work of others.

    Args:
        comm: communicator of the group, which Horovod copies.
        device: device of this rank, on which the gradients are.

    Raises:
        ModuleNotFoundError: Horovod is not installed.
        UserError: the ranks communicate without MPI; or the device is a GPU, and Horovod was built without NCCL (for
            AMD GPUs: RCCL), or two ranks of the group have the same GPU.
    """

    def __init__(self, comm: Communicator, device: torch.device) -> None:
        mpi = require_mpi(comm, "gradients = horovod")
        import horovod.torch as hvd

        if device.type == "cuda":
            require_nccl(device)
            require_own_gpu(comm, device)
            # Otherwise the host waits for each average. With it, only the GPU's default stream does.
            os.environ.setdefault("HOROVOD_ENABLE_ASYNC_COMPLETION", "1")
        # Not process sets: with those a stopped rank of one group stalls every group.
        hvd.init(comm=mpi)
        self._comm = mpi

    def distribute(self, model: Model, optimizer: Optimizer, micro_batches: int) -> tuple[Model, Optimizer]:
        """Return `model` itself, and an optimizer that averages in the last backward pass before each step."""
        import horovod.torch as hvd

        _broadcast_parameters(model)
        distributed: Optimizer = hvd.DistributedOptimizer(
            optimizer,
            named_parameters=model.named_parameters(),
            compression=WideBfloat16,
            backward_passes_per_step=micro_batches,
        )
        return model, distributed

    @contextmanager
    def averaged_gradients(self, optimizer: Any) -> Iterator[None]:
        """Wait for the averages of all gradients; in the block, `optimizer.step()` takes the gradients as they are."""
        optimizer.synchronize()
        with optimizer.skip_synchronize():
            yield

    def vocab_parallel(self, classes: int) -> VocabParallel:
        """Return the place of this rank's `classes` rows; the collectives are Horovod's and MPI's.

        Gradients are summed by Horovod. The logsumexp of a few tokens goes through MPI: a hundredth of a millisecond,
        while Horovod's own allreduce waits a millisecond for its next cycle.
        """
        comm = self._comm
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


def require_nccl(device: torch.device) -> None:
    """Check that Horovod can average gradients on a GPU.

    Raises:
        UserError: it was built without NCCL (for AMD GPUs: RCCL).
    """
    import horovod.torch as hvd

    if not hvd.nccl_built():
        raise UserError(
            f"the gradients are on {device}, but {built_with()}: without NCCL it cannot average them; run "
            "ACCELERATOR=cuda make setup (AMD: rocm), or use --gradients=torch"
        )


def built_with() -> str:
    """Return the version of Horovod and the libraries that it was built with."""
    import horovod
    import horovod.torch as hvd

    libraries = ["MPI"] * hvd.mpi_built() + ["CUDA"] * hvd.cuda_built() + ["ROCm"] * hvd.rocm_built()
    if version := hvd.nccl_built():
        libraries.append(f"{'RCCL' if hvd.rocm_built() else 'NCCL'} {_nccl_version(version)}")
    return f"Horovod {horovod.__version__} was built with {', '.join(libraries)}"


def _nccl_version(code: int) -> str:
    """Return the version for an NCCL_VERSION_CODE, such as 2.29.7 for 22907; 2.8 and older wrote 2804."""
    major, rest = divmod(code, 10_000 if code >= 10_000 else 1_000)
    return f"{major}.{rest // 100}.{rest % 100}"


class WideBfloat16:
    """Compression for Horovod that averages bfloat16 gradients in float32, because it has no sum of bfloat16.

    Other gradients are averaged as they are. Each sum is rounded once, not at each addition.
    """

    @staticmethod
    def compress(tensor: Tensor) -> tuple[Tensor, torch.dtype]:
        """Return the tensor that is sent for a gradient, and the dtype of the gradient."""
        return tensor.float() if tensor.dtype == torch.bfloat16 else tensor, tensor.dtype

    @staticmethod
    def decompress(tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the average as a gradient of `dtype`."""
        return tensor.to(dtype)


def _broadcast_parameters(model: nn.Module) -> None:
    """Copy the leader's parameters and buffers to every rank. Collective over the group.

    The optimizer needs no broadcast: its state is empty at the start, and after a restart every rank has read the same
    checkpoint. (Horovod's own broadcast would run a step to create the state first.)
    """
    import horovod.torch as hvd

    tensors = model.state_dict().items()
    # Horovod sends no bfloat16; the bytes are what matters.
    sent = {name: tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor for name, tensor in tensors}
    hvd.broadcast_parameters(sent, root_rank=0)
