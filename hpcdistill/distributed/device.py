"""The device on which a rank trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hpcdistill.errors import UserError

if TYPE_CHECKING:
    from mpi4py import MPI


def local_device(world: MPI.Intracomm) -> torch.device:
    """Choose and set this rank's GPU; return the CPU where no rank sees a GPU.

    The GPUs of a node are assigned to its ranks in order; several ranks share a GPU where there are fewer GPUs than
    ranks. Collective over the world.

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
