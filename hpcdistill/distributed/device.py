"""Choice of the device on which a rank trains, and refusal of devices on which it should not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hpcdistill.distributed.node import node_name
from hpcdistill.errors import UserError

if TYPE_CHECKING:
    from hpcdistill.distributed.communicator import Communicator

VISIBLE_DEVICES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
"""Variables that select the GPUs of a process; Slurm sets them too."""
NO_DEVICES = ("", "-1", "NoDevFiles")
"""Values of these variables that hide all GPUs; the last one is Slurm's."""
SLURM_GPUS = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "SLURM_GPUS_ON_NODE")
"""Variables that Slurm sets in a job with GPUs."""
NVIDIA_DEVICE = Path("/dev/nvidia0")


def local_device(world: Communicator) -> torch.device:
    """Choose and set this rank's GPU; return the CPU where no rank sees a GPU.

    The GPUs of a node are assigned to its ranks in order; several ranks share a GPU where there are fewer GPUs than
    ranks. Collective over the world.

    Raises:
        UserError: some ranks see a GPU and others do not; or torch sees none although the job was given GPUs, which
            CUDA_VISIBLE_DEVICES does not hide; on every rank.
    """
    seen = world.allgather(torch.cuda.is_available())
    if not any(seen):
        for rank, unused in enumerate(world.allgather(unused_gpus())):
            if unused:
                raise UserError(f"world rank {rank} would train on a CPU: {unused}")
        return torch.device("cpu")
    if not all(seen):
        raise UserError(
            f"world rank {seen.index(True)} sees a GPU, rank {seen.index(False)} sees none; give one to every rank "
            "(sbatch --gpus-per-node), or to none (CUDA_VISIBLE_DEVICES=)"
        )
    nodes = world.allgather(node_name())
    local_rank = nodes[: world.rank].count(nodes[world.rank])
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def single_device() -> torch.device:
    """Return the current GPU of a process that runs without MPI, or the CPU where it sees no GPU.

    Raises:
        UserError: torch sees no GPU although the process was given one, which CUDA_VISIBLE_DEVICES does not hide.
    """
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if unused := unused_gpus():
        raise UserError(f"this process would train on a CPU: {unused}")
    return torch.device("cpu")


def unused_gpus() -> str:
    """Return why torch does not see the GPUs of this process, and the remedy; empty if it sees or was given none.

    Setting CUDA_VISIBLE_DEVICES to nothing asks for CPUs. It needs no key of the configuration: torch and all of its
    libraries respect it, and it works for every command.
    """
    evidence = _given_gpus()
    if torch.cuda.is_available() or not evidence:
        return ""
    if torch.version.cuda or torch.version.hip:
        remedy = "does not see it; look with nvidia-smi (AMD: rocminfo) whether the driver works"
    else:
        remedy = "cannot use it; run ACCELERATOR=cuda make setup (AMD: rocm)"
    return (
        f"{evidence} says that {os.uname().nodename} has a GPU for it, but {torch_build()} {remedy}; "
        "to train on CPUs, set CUDA_VISIBLE_DEVICES= (to nothing), or submit the job without GPUs"
    )


def torch_build() -> str:
    """Return the version of torch and the accelerator that it was built for."""
    for name, version in (("CUDA", torch.version.cuda), ("ROCm", torch.version.hip)):
        if version:
            return f"torch {torch.__version__} for {name} {version}"
    return f"torch {torch.__version__} for CPUs"


def require_own_gpu(comm: Communicator, device: torch.device) -> None:
    """Check that the ranks of a group train on different GPUs, without which NCCL refuses to average their gradients.

    Collective over the group. Ranks of different groups may share a GPU.

    Args:
        comm: the group's communicator.
        device: this rank's GPU.

    Raises:
        UserError: two ranks have the same GPU; names both, the node and the GPU; on every rank.
    """
    users: dict[str, int] = {}
    for rank, gpu in enumerate(comm.allgather(gpu_name(device))):
        if gpu in users:
            raise UserError(
                f"ranks {users[gpu]} and {rank} of one group train on one GPU, {gpu}, where NCCL cannot average "
                "gradients; start as many ranks on each node as it has GPUs, give each rank its own (sbatch "
                "--gpus-per-task=1), or put them into different groups"
            )
        users[gpu] = rank


def gpu_name(device: torch.device) -> str:
    """Return the name of a GPU among those of all nodes."""
    # By UUID: the index of a GPU differs between ranks that see different ones.
    return f"{torch.cuda.get_device_properties(device).uuid} of {os.uname().nodename}"


def _given_gpus() -> str:
    """Return what shows that this process was given GPUs, such as `SLURM_JOB_GPUS=0,1`; empty if nothing does."""
    if any(os.environ.get(name) in NO_DEVICES for name in VISIBLE_DEVICES):
        return ""
    for name in (*SLURM_GPUS, *VISIBLE_DEVICES):
        value = os.environ.get(name, "")
        if value and (name, value) != ("SLURM_GPUS_ON_NODE", "0"):
            return f"{name}={value}"
    # A job without GPUs may still see those of its node.
    return "" if "SLURM_JOB_ID" in os.environ or not NVIDIA_DEVICE.exists() else str(NVIDIA_DEVICE)
