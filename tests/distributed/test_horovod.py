"""Horovod on a GPU: it needs NCCL, and says what it was built with."""

import horovod.torch as hvd
import pytest
import torch

from hpcdistill.distributed.horovod import HorovodBackend, built_with, require_nccl
from hpcdistill.distributed.single import SingleProcess
from hpcdistill.errors import UserError

pytestmark = pytest.mark.alone

GPU = torch.device("cuda", 0)


def test_horovod_without_nccl_is_refused_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hvd, "nccl_built", lambda: 0)
    with pytest.raises(UserError, match=r"on cuda:0, but Horovod .* built with MPI.*: without NCCL it cannot") as error:
        HorovodBackend(SingleProcess(), GPU)  # type: ignore[arg-type]
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
