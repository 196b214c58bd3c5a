"""Horovod on a GPU: it needs NCCL, and says what it was built with."""

import os

import horovod.torch as hvd
import pytest
import torch
from mpi4py import MPI

from hpcdistill.distributed import horovod
from hpcdistill.distributed.horovod import HorovodBackend, built_with, require_nccl
from hpcdistill.errors import UserError

pytestmark = pytest.mark.alone

GPU = torch.device("cuda", 0)
VARIABLE = "HOROVOD_ENABLE_ASYNC_COMPLETION"


def test_horovod_without_nccl_is_refused_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hvd, "nccl_built", lambda: 0)
    with pytest.raises(UserError, match=r"on cuda:0, but Horovod .* built with MPI.*: without NCCL it cannot") as error:
        HorovodBackend(MPI.COMM_SELF, GPU)
    assert "ACCELERATOR=cuda make setup" in str(error.value)


@pytest.mark.parametrize(("code", "version"), [(22907, "NCCL 2.29.7"), (2804, "NCCL 2.8.4")])
def test_the_version_of_nccl_is_named(monkeypatch: pytest.MonkeyPatch, code: int, version: str) -> None:
    monkeypatch.setattr(hvd, "nccl_built", lambda: code)
    require_nccl(GPU)
    assert built_with().endswith(version)


def test_amd_has_rccl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hvd, "nccl_built", lambda: 22203)
    monkeypatch.setattr(hvd, "rocm_built", lambda: True)
    assert built_with().endswith("ROCm, RCCL 2.22.3")


@pytest.mark.parametrize(
    ("device", "chosen", "expected"), [("cuda", None, "1"), ("cuda", "0", "0"), ("cpu", None, None)]
)
def test_the_host_does_not_wait_for_averages_on_a_gpu(
    device: str, chosen: str | None, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check the variable when Horovod starts, which reads it then."""
    seen: list[str | None] = []
    monkeypatch.setattr(hvd, "nccl_built", lambda: 22907)
    monkeypatch.setattr(hvd, "init", lambda comm: seen.append(os.environ.get(VARIABLE)))
    monkeypatch.setattr(horovod, "require_own_gpu", lambda comm, device: None)
    monkeypatch.setenv(VARIABLE, "before")  # so that the test's end restores it
    monkeypatch.delenv(VARIABLE)
    if chosen is not None:
        monkeypatch.setenv(VARIABLE, chosen)
    HorovodBackend(MPI.COMM_SELF, torch.device(device))
    assert seen == [expected]
