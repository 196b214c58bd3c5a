"""The ranks of MPI compared with those of Slurm."""

import os
from pathlib import Path

import pytest
from mpi4py import MPI

from doctor_results import assert_last_rank_failed
from hpcdistill.doctor import slurm_job
from hpcdistill.doctor.check import Status
from hpcdistill.doctor.slurm_job import MPIRUN_VARIABLES, check_job


def pretend_slurm(monkeypatch: pytest.MonkeyPatch, **environment: str) -> None:
    for name in os.environ:
        if name.startswith("SLURM_") or name in MPIRUN_VARIABLES:
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(("more", "status"), [(0, Status.OK), (1, Status.FAIL)])
def test_mpirun_is_to_start_as_many_as_slurm_has_set_aside(
    monkeypatch: pytest.MonkeyPatch, more: int, status: Status
) -> None:
    tasks = str(MPI.COMM_WORLD.size + more)
    pretend_slurm(monkeypatch, SLURM_JOB_ID="1", SLURM_NTASKS=tasks, MPI_LOCALNRANKS="1")
    result = check_job()
    if MPI.COMM_WORLD.rank == 0:
        assert result.status is status
        assert (f"for {tasks} tasks" in result.found) == bool(more)
    else:
        assert result.status is Status.OK


def test_ranks_of_an_mpirun_that_used_srun_find_the_tasks_of_the_job(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho JobId=$3 NumTasks={MPI.COMM_WORLD.size} CPUs/Task=1\n")
    (tmp_path / "scontrol").chmod(0o755)
    step = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "1000", "SLURM_STEP_NUM_TASKS": "1000", "SLURM_PROCID": "0"}
    pretend_slurm(monkeypatch, SLURM_JOB_ID="7", MPI_LOCALNRANKS="1", **step, PATH=f"{tmp_path}:{os.environ['PATH']}")
    # A world of one among a thousand tasks of srun would look like the wrong PMI.
    monkeypatch.setattr(slurm_job, "require_one_world", lambda: None)
    assert check_job().status is Status.OK


def test_the_world_is_the_one_that_srun_started(monkeypatch: pytest.MonkeyPatch) -> None:
    rank, size = MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size
    pretend_slurm(monkeypatch, SLURM_JOB_ID="1", SLURM_STEP_NUM_TASKS=str(size), SLURM_PROCID=str(rank))
    assert check_job().status is Status.OK


def test_a_rank_with_the_number_of_another_is_named_on_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    rank, size = MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size
    number = rank if rank < size - 1 else 1000
    pretend_slurm(monkeypatch, SLURM_JOB_ID="1", SLURM_STEP_NUM_TASKS=str(size), SLURM_PROCID=str(number))
    result = check_job()
    assert_last_rank_failed(result, "SLURM_PROCID is 1000")
