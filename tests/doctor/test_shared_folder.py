"""A folder that ranks do not share, or that takes no files."""

import os
from pathlib import Path

import pytest
from mpi4py import MPI

from doctor_results import assert_last_rank_failed
from hpcdistill.doctor import shared_folder
from hpcdistill.doctor.check import Status
from hpcdistill.doctor.shared_folder import check_folder


@pytest.mark.skipif(MPI.COMM_WORLD.size < 2, reason="ranks: needs two that differ; run under mpirun")
def test_a_folder_that_is_another_one_on_the_last_rank(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shared_folder, "VISIBLE_SECONDS", 1.0)
    rank, last = MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size - 1
    shared = MPI.COMM_WORLD.bcast(tmp_path)
    result = check_folder(tmp_path if rank == last else shared)
    assert_last_rank_failed(result, "not the same folder on every node")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    result = check_folder(tmp_path / "absent")
    assert result.status is Status.FAIL
    assert "FileNotFoundError" in result.found
    assert result.remedy


def test_a_folder_that_rank_0_cannot_write(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError("Disk quota exceeded")

    monkeypatch.setattr(os, "fsync", refuse)  # permissions would not stop root
    result = check_folder(MPI.COMM_WORLD.bcast(tmp_path))
    if MPI.COMM_WORLD.rank == 0:
        assert result.status is Status.FAIL
        assert "Disk quota exceeded" in result.found
    assert not list(tmp_path.iterdir())
