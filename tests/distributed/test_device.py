"""Choice of a rank's device, and devices that are refused."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mpi4py import MPI

from hidden_gpus import hide_gpus
from hpcdistill.distributed import device
from hpcdistill.distributed.device import local_device, require_own_gpu, single_device, unused_gpus
from hpcdistill.errors import UserError


@pytest.fixture(autouse=True)
def no_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hide_gpus(monkeypatch, tmp_path)


def pretend_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> list[torch.device]:
    """Let torch see GPUs; return the list of those that are set."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda each: SimpleNamespace(uuid=f"GPU-{torch.device(each).index}")
    )
    return chosen


def test_ranks_without_gpus_train_on_cpus(world: MPI.Intracomm) -> None:
    assert local_device(world) == torch.device("cpu")
    assert single_device() == torch.device("cpu")


def test_gpus_of_a_node_are_assigned_in_the_order_of_its_ranks(
    world: MPI.Intracomm, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = pretend_gpus(monkeypatch, 2)
    # Ranks 0 and 3 are on one node, 1 and 2 on another.
    nodes = ["a", "b", "b", "a"]
    monkeypatch.setattr(device, "node_name", lambda: (nodes[world.rank], "boot"))
    expected = torch.device("cuda", [0, 0, 1, 1][world.rank])
    assert local_device(world) == expected
    assert chosen == [expected]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SLURM_JOB_GPUS", "0"),
        ("SLURM_STEP_GPUS", "2,3"),
        ("SLURM_GPUS_ON_NODE", "4"),
        ("CUDA_VISIBLE_DEVICES", "0"),
        ("HIP_VISIBLE_DEVICES", "1"),
        ("ROCR_VISIBLE_DEVICES", "1"),
    ],
)
def test_training_on_cpus_with_gpus_at_hand_is_refused(
    world: MPI.Intracomm, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    last = world.size - 1
    if world.rank == last:
        monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match=f"this process would train on a CPU: {name}={value} says"):
            single_device()
    with pytest.raises(UserError, match=f"world rank {last} would train on a CPU: {name}={value} says") as error:
        local_device(world)
    assert "set CUDA_VISIBLE_DEVICES= (to nothing)" in str(error.value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # the remedy
    assert local_device(world) == torch.device("cpu")


@pytest.mark.alone
@pytest.mark.parametrize("name", device.VISIBLE_DEVICES)
@pytest.mark.parametrize("value", device.NO_DEVICES)
def test_hidden_gpus_are_not_missed(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv("SLURM_JOB_GPUS", "0,1")
    assert unused_gpus()
    monkeypatch.setenv(name, value)
    assert not unused_gpus()


@pytest.mark.alone
def test_the_device_file_counts_outside_of_slurm_only(monkeypatch: pytest.MonkeyPatch) -> None:
    device.NVIDIA_DEVICE.touch()
    assert f"{device.NVIDIA_DEVICE} says that" in unused_gpus()
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "0")
    assert not unused_gpus()


@pytest.mark.alone
def test_the_reason_is_the_build_of_torch_or_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_GPUS", "0")
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    assert "for CPUs cannot use it; run ACCELERATOR=cuda make setup" in unused_gpus()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "for CUDA 13.0 does not see it; look with nvidia-smi" in unused_gpus()
    pretend_gpus(monkeypatch, 1)
    assert not unused_gpus()


def test_two_ranks_of_a_group_on_one_gpu_are_refused_by_name(
    world: MPI.Intracomm, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_gpus(monkeypatch, 8)
    last = world.size - 1
    require_own_gpu(world, torch.device("cuda", world.rank))  # each has its own
    if last:
        shared = torch.device("cuda", world.rank % last)  # the last rank has that of the first
        with pytest.raises(UserError, match=f"ranks 0 and {last} of one group train on one GPU, GPU-0 of"):
            require_own_gpu(world, shared)


def test_ranks_of_different_groups_may_share_a_gpu(world: MPI.Intracomm, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, 1)
    group = world.Split(world.rank)
    require_own_gpu(group, torch.device("cuda", 0))
    group.Free()
