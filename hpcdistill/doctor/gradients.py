"""Checks of the gradient backends: the average of a gradient on the device of the training."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from hpcdistill.doctor import mpi
from hpcdistill.doctor.check import SETUP, Check, Result, Status
from hpcdistill.errors import UserError

if TYPE_CHECKING:
    import torch

    from hpcdistill.distributed.communicator import Communicator

INSTEAD = "HOROVOD=build make setup; without it, train with --gradients=torch"


def check_horovod() -> Result:
    """Check that Horovod averages a gradient. Optional where no rank has it: the other backend does without."""
    if not mpi.has_mpi():
        return Result(Status.OPTIONAL, "not used: it needs MPI", INSTEAD)
    world = mpi.world()
    found = world.allgather(_has_horovod())
    if not all(found):
        where = f"not installed for rank {found.index(False)}" if any(found) else "not installed"
        return Result(Status.FAIL if any(found) else Status.OPTIONAL, where, INSTEAD)
    from hpcdistill.distributed.device import local_device
    from hpcdistill.distributed.horovod import built_with, require_nccl

    device = local_device(world)
    if device.type == "cuda":
        require_nccl(device)
    return Result(Status.OK, f"{built_with()}; {_average_gradient('horovod', world, device)}")


def check_torch() -> Result:
    """Check that torch.distributed averages a gradient. Optional where Horovod can do it."""
    from hpcdistill.distributed.device import local_device

    world = mpi.world()
    device = local_device(world)
    library = "gloo" if device.type == "cpu" else "NCCL"
    try:
        return Result(Status.OK, f"{library}; {_average_gradient('torch', world, device)}")
    except UserError as error:
        return Result(Status.OPTIONAL if mpi.has_mpi() and _has_horovod() else Status.FAIL, str(error))


def _average_gradient(name: str, world: Communicator, device: torch.device) -> str:
    """Average a gradient on `device` by a gradient backend, in the way of the training. Collective over the world.

    Ranks that share a GPU are not in one group, as in the training.

    Returns:
        The description of what was averaged.

    Raises:
        UserError: the backend cannot average on this device.
        AssertionError: the average is wrong.
    """
    import torch

    from hpcdistill.distributed.gradients import start_backend

    comm = _ranks_with_own_gpus(world, device)
    backend = start_backend(name, comm, device)
    model = torch.nn.Linear(1000, 1, bias=False, device=device)
    model, optimizer = backend.distribute(model, torch.optim.SGD(model.parameters()), micro_batches=1)
    model(torch.full((1, 1000), comm.rank + 1.0, device=device)).sum().backward()
    with backend.averaged_gradients(optimizer):
        (weight,) = model.parameters()
        average = weight.grad
    mean = (comm.size + 1) / 2
    assert average is not None
    assert bool((average == mean).all()), f"the average of 1 to {comm.size} is {float(average[0, 0])}"
    return f"averaged a gradient on {device.type}, {comm.size} rank(s)"


def _ranks_with_own_gpus(world: Communicator, device: torch.device) -> Communicator:
    """Return this rank's communicator, in which no two ranks have the same GPU; on CPUs that of all ranks."""
    from hpcdistill.distributed.device import gpu_name

    if device.type == "cpu":
        return world
    gpus = world.allgather(gpu_name(device))
    return world.Split(gpus[: world.rank].count(gpus[world.rank]))


def _has_horovod() -> bool:
    return importlib.util.find_spec("horovod") is not None


CHECKS: list[Check] = [("Horovod", check_horovod, SETUP), ("torch DDP", check_torch, "train with --gradients=horovod")]
