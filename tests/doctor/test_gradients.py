"""Average of a gradient on the device of the training."""

from types import SimpleNamespace

import horovod.torch as hvd
import pytest
import torch
from mpi4py import MPI

from hpcdistill.distributed.horovod import HorovodBackend
from hpcdistill.doctor.check import Status, run_check
from hpcdistill.doctor.gradients import _ranks_with_own_gpus, check_horovod


def pretend_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=f"GPU-{device.index}"))


def test_horovod_without_nccl_is_a_failure_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, MPI.COMM_WORLD.size)
    monkeypatch.setattr(hvd, "nccl_built", lambda: 0)
    result = run_check(check_horovod, "")
    assert result.status is Status.FAIL
    assert "without NCCL it cannot average" in result.found
    assert "ACCELERATOR=cuda make setup" in result.found


def test_an_average_on_the_wrong_device_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the gradients as they are, as a backend would that takes no part."""
    distribute = HorovodBackend.distribute

    def alone(self: HorovodBackend, model: torch.nn.Module, optimizer: torch.optim.Optimizer, micro_batches: int):
        return distribute(self, model, optimizer, micro_batches)[0], optimizer

    monkeypatch.setattr(HorovodBackend, "distribute", alone)
    monkeypatch.setattr(HorovodBackend, "averaged_gradients", lambda self, optimizer: torch.no_grad())
    result = run_check(check_horovod, "")
    hvd.shutdown()  # other tests start it in groups
    assert (result.status is Status.FAIL) == (MPI.COMM_WORLD.size > 1), result


def test_ranks_that_share_a_gpu_are_not_one_group(world: MPI.Intracomm, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, 2)
    comm = _ranks_with_own_gpus(world, torch.device("cuda", world.rank % 2))
    assert comm.size == min(world.size, 2)
    assert comm.rank == world.rank % 2
    comm.Free()
