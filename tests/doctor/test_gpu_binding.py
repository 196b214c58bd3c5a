"""GPU of each rank, and ranks that share one."""

from types import SimpleNamespace

import pytest
import torch
from mpi4py import MPI

from hpcdistill.doctor.check import Status
from hpcdistill.doctor.gpu_binding import GpuBinding, check_gpu_binding, judge


def test_every_rank_tells_which_gpu_it_would_train_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=f"{device}1234567-8"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    result = check_gpu_binding()
    assert result.status is Status.OK
    for rank in range(MPI.COMM_WORLD.size):
        gpu = rank % 2
        text = f"rank {rank} → {gpu}1234567 (cuda:{gpu} of 2, CUDA_VISIBLE_DEVICES 4,6)"
        assert text in result.found


def test_gpus_of_their_own() -> None:
    bindings = [GpuBinding(rank, f"node{rank // 2}", None, ("a", "b"), rank % 2) for rank in range(4)]
    result = judge(bindings)
    assert result.status is Status.OK
    assert "node0: rank 0 → a (cuda:0 of 2, CUDA_VISIBLE_DEVICES unset), rank 1 → b" in result.found
    assert "node1: rank 2 → a" in result.found
    assert not result.remedy


def test_a_gpu_that_is_shared_while_another_is_idle() -> None:
    closest = [("a", "b"), ("c", "d")]
    bindings = [GpuBinding(rank, "node1", "x,y", closest[rank % 2], rank % 2) for rank in range(4)]
    result = judge(bindings)
    assert result.status is Status.OK
    assert "node1: ranks 0, 2 share a and ranks 1, 3 share d while b, c idle" in result.found
    assert "--gpus-per-task" in result.remedy


def test_a_gpu_that_is_shared_because_there_are_no_more() -> None:
    result = judge([GpuBinding(rank, "node1", None, ("a",), 0) for rank in range(2)])
    assert result.status is Status.OK
    assert "node1: ranks 0, 1 share a (ranks of one group may not, with NCCL)" in result.found


def test_a_rank_that_sees_no_gpu_though_others_do() -> None:
    result = judge([GpuBinding(0, "node1", None, ("a",), 0), GpuBinding(1, "node1", "", (), None)])
    assert result.status is Status.FAIL
    assert "rank 1 on node1" in result.found


def test_no_gpus_at_all() -> None:
    assert judge([GpuBinding(0, "node1", None, (), None)]).status is Status.OPTIONAL
