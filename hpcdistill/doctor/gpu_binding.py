"""Check of the GPU on which each rank of a job would train."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from mpi4py import MPI

from hpcdistill.distributed.device import local_device
from hpcdistill.doctor.ask_all import ask_all, have_failed, summarize
from hpcdistill.doctor.check import Check, Result, Status

REMEDY = (
    "let all ranks of a node see all its GPUs (srun --gpu-bind=none), or each one of its own (sbatch --gpus-per-task=1)"
)


@dataclass(frozen=True)
class GpuBinding:
    """The GPUs that one rank sees on its node, and the one on which it would train."""

    rank: int
    node: str
    variable: str | None
    """Value of CUDA_VISIBLE_DEVICES; None if it is not set."""
    visible: tuple[str, ...]
    """Names of the GPUs that it sees, equal on all ranks of the node."""
    chosen: int | None
    """Index into `visible`; None on a rank without GPUs."""

    @property
    def gpu(self) -> str:
        """Name of the chosen GPU."""
        return self.visible[self.chosen or 0]


def check_gpu_binding() -> Result:
    """Report which rank trains on which GPU. Collective over the world."""
    answers = ask_all(_visible_gpus)
    if have_failed(answers):
        return summarize(answers, "", REMEDY)
    visible = answers[MPI.COMM_WORLD.rank].value or ()
    # The choice is collective over all ranks, and each of them needs a GPU for it.
    chosen = local_device(MPI.COMM_WORLD).index if all(answer.value for answer in answers) else None
    variable = os.environ.get("CUDA_VISIBLE_DEVICES")
    binding = GpuBinding(MPI.COMM_WORLD.rank, os.uname().nodename, variable, visible, chosen)
    return judge(MPI.COMM_WORLD.allgather(binding))


def judge(bindings: Sequence[GpuBinding]) -> Result:
    """Return the result for the bindings of all ranks, which are in the order of ranks."""
    if not any(binding.visible for binding in bindings):
        return Result(Status.OPTIONAL, "none", "on nodes with GPUs ask for them: sbatch --gpus-per-node")
    blind = [f"rank {binding.rank} on {binding.node}" for binding in bindings if not binding.visible]
    if blind:
        return Result(Status.FAIL, f"no GPU seen by {', '.join(blind)}, though others see some", REMEDY)
    by_node = groupby(sorted(bindings, key=lambda b: (b.node, b.rank)), key=lambda b: b.node)
    nodes = [list(bindings_there) for _, bindings_there in by_node]
    shared = list(filter(None, map(_describe_sharing, nodes)))
    return Result(Status.OK, "\n".join([*map(_describe_node, nodes), *shared]), REMEDY if shared else "")


def _visible_gpus() -> tuple[str, ...]:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    # By UUID: the index of a GPU differs between ranks that see different ones.
    return tuple(str(torch.cuda.get_device_properties(device).uuid)[:8] for device in range(count))


def _describe_node(bindings: Sequence[GpuBinding]) -> str:
    """Name the GPU of each rank of a node."""
    texts = [
        f"rank {binding.rank} → {binding.gpu} (cuda:{binding.chosen} of {len(binding.visible)}, "
        f"CUDA_VISIBLE_DEVICES {'unset' if binding.variable is None else binding.variable})"
        for binding in bindings
    ]
    return f"{bindings[0].node}: {', '.join(texts)}"


def _describe_sharing(bindings: Sequence[GpuBinding]) -> str:
    """Name the ranks of a node that share a GPU, and the GPUs that are idle; empty if no rank shares one."""
    users = Counter(binding.gpu for binding in bindings)
    shared = [gpu for gpu, count in users.items() if count > 1]
    if not shared:
        return ""
    idle = sorted({gpu for binding in bindings for gpu in binding.visible} - set(users))
    ranks = [", ".join(str(binding.rank) for binding in bindings if binding.gpu == gpu) for gpu in shared]
    shares = " and ".join(f"ranks {those} share {gpu}" for those, gpu in zip(ranks, shared, strict=True))
    rest = f"while {', '.join(idle)} idle" if idle else "(ranks of one group may not, with NCCL)"
    return f"{bindings[0].node}: {shares} {rest}"


CHECK: Check = ("GPU binding", check_gpu_binding, REMEDY)
