"""GPUs of the machine, compared with the build of torch."""

from pathlib import Path

import pytest
import torch

from hidden_gpus import hide_gpus
from hpcdistill.distributed import device
from hpcdistill.doctor.check import Result, Status, run_check
from hpcdistill.doctor.machine import check_gpu

pytestmark = pytest.mark.alone


@pytest.fixture(autouse=True)
def no_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hide_gpus(monkeypatch, tmp_path)


def test_without_gpus_the_build_of_torch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    result = check_gpu()
    assert result.status is Status.OPTIONAL
    assert result.found == f"none; torch {torch.__version__} for CPUs"


def test_torch_for_cpus_on_a_machine_with_gpus_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    device.NVIDIA_DEVICE.touch()
    result = run_check(check_gpu, "")
    assert result.status is Status.FAIL
    assert "for CPUs cannot use it; run ACCELERATOR=cuda make setup" in result.found
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert check_gpu().status is Status.OPTIONAL


def test_gpus_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert check_gpu() == Result(Status.OK, f"2 × NVIDIA H100; torch {torch.__version__} for CUDA 13.0")
