"""doctor: says what works, and names the remedy for what does not."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace

import pytest
import torch
from mpi4py import MPI

from hpcdistill.doctor import cluster as cluster_doctor
from hpcdistill.doctor import machine as doctor
from hpcdistill.doctor.cluster import Sight, binding
from hpcdistill.doctor.machine import Result, Status
from two_nodes import on_two_nodes

WITHOUT_H5PY = """
import sys
sys.modules["h5py"] = None  # `import h5py` raises ImportError
from hpcdistill.doctor.machine import main
sys.exit(main())
"""

HOROVOD_ON_RANK_0_ALONE = """
import sys
from mpi4py import MPI
from hpcdistill.doctor import machine as doctor
if MPI.COMM_WORLD.rank == 1:
    sys.modules["horovod"] = None
doctor.CHECK_SECONDS = 5
sys.exit(doctor.main())
"""

RANK_1_HANGS = """
import time
from mpi4py import MPI
from hpcdistill.doctor import cluster as cluster_doctor
cluster_doctor.TASK_SECONDS = 1
cluster_doctor.ask_all(lambda: time.sleep(1000 * MPI.COMM_WORLD.rank))
"""

NOBODY_LOOKS = """
import sys, time
from hpcdistill.doctor import cluster as cluster_doctor
from hpcdistill.doctor import machine as doctor
from hpcdistill.doctor import window_probe
window_probe.GET_SECONDS = 1
window_probe.WindowProbe._serve = lambda *_: time.sleep(4)
doctor.CHECKS = [("window progress", cluster_doctor.check_window_progress, "")]
sys.exit(doctor.main())
"""


def row_of(output: str, name: str) -> str:
    """The row of this name and what belongs to it, on the lines below."""
    lines = output.splitlines()
    begin = next(index for index, line in enumerate(lines) if line.startswith(f"{name} "))
    end = next(index for index in range(begin + 1, len(lines)) if not lines[index].startswith(" "))
    return "\n".join(lines[begin:end])


@pytest.mark.launch
def test_all_that_training_needs_works_here() -> None:
    result = subprocess.run([sys.executable, "-m", "hpcdistill", "doctor"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    for name, _, _ in doctor.CHECKS:
        assert f"\n{name} " in f"\n{result.stdout}"
    assert "Training can run." in result.stdout


@pytest.mark.launch
def test_one_table_for_all_ranks(mpirun: Callable[..., CompletedProcess[str]]) -> None:
    result = mpirun(2, "-m", "hpcdistill", "doctor")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("Training can run.") == 1
    assert "world of 2" in result.stdout
    assert "allreduce on 2 rank(s)" in result.stdout


@pytest.mark.launch
def test_a_missing_package_fails_with_its_remedy() -> None:
    result = subprocess.run([sys.executable, "-c", WITHOUT_H5PY], capture_output=True, text=True)
    assert result.returncode == 1
    lines = result.stdout.splitlines()
    row = next(index for index, line in enumerate(lines) if line.startswith("HDF5"))
    assert "FAIL" in lines[row]
    assert "h5py" in lines[row]
    assert lines[row + 1].strip() == "remedy: run `make setup`"
    assert lines[-1] == "Training cannot run: HDF5."
    assert "Traceback" not in result.stdout + result.stderr


@pytest.mark.launch
@pytest.mark.parametrize(
    ("variable", "value", "remedy"),
    [
        ("MPI4PY_RC_THREAD_LEVEL", "serialized", "unset MPI4PY_RC_THREAD_LEVEL"),
        ("SLURM_STEP_NUM_TASKS", "2", "use srun --mpi=pmi2 for MPICH"),
    ],
)
def test_an_environment_in_which_training_would_refuse_to_start_fails(variable: str, value: str, remedy: str) -> None:
    environment = os.environ | {variable: value}
    command = [sys.executable, "-m", "hpcdistill", "doctor"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 1
    (row,) = (line for line in result.stdout.splitlines() if "FAIL" in line)
    assert remedy in row


def test_a_check_that_raises_fails_with_its_message() -> None:
    def check() -> Result:
        raise OSError("the disk is gone\nand more")

    assert doctor.run(check, "buy a disk") == Result(Status.FAIL, "OSError: the disk is gone", "buy a disk")


@pytest.mark.launch
def test_a_check_that_one_rank_fails_does_not_keep_the_others_for_ever(
    mpirun: Callable[..., CompletedProcess[str]],
) -> None:
    result = mpirun(2, "-c", HOROVOD_ON_RANK_0_ALONE)
    assert result.returncode != 0
    assert "On rank 1:\nHorovod         FAIL" in result.stdout
    assert "'Horovod' has not ended" in result.stderr


@pytest.mark.launch
def test_slurm_outside_an_allocation(mpirun: Callable[..., CompletedProcess[str]], tmp_path: Path) -> None:
    result = mpirun(2, "-m", "hpcdistill", "doctor", "--slurm", f"--folder={tmp_path}", env={"SLURM_JOB_ID": ""})
    assert result.returncode == 1, result.stdout + result.stderr
    assert "FAIL" in row_of(result.stdout, "Slurm job")
    assert "remedy: run it inside one" in row_of(result.stdout, "Slurm job")
    assert "GPU binding" in result.stdout
    assert "OK" in row_of(result.stdout, "window progress")
    assert "one node only: not tested between nodes" in row_of(result.stdout, "window progress")
    assert "OK" in row_of(result.stdout, "shared folder")
    assert f"{tmp_path}, rank 0's files seen by 2 rank(s)" in row_of(result.stdout, "shared folder")
    assert "Training cannot run: Slurm job." in result.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.launch
def test_slurm_without_mpi_is_told_of_mpi() -> None:
    script = (
        "import sys; sys.modules['mpi4py'] = None; from hpcdistill.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    result = subprocess.run([sys.executable, "-c", script, "doctor", "--slurm"], capture_output=True, text=True)
    assert result.returncode == 1, result.stderr
    assert "remedy: run `make setup`" in row_of(result.stdout, "MPI")


@pytest.mark.launch
def test_a_folder_to_check_is_for_slurm() -> None:
    command = [sys.executable, "-m", "hpcdistill", "doctor", "--folder=."]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert "--folder" in result.stderr
    assert "--slurm" in result.stderr


def pretend_slurm(monkeypatch: pytest.MonkeyPatch, **environment: str) -> None:
    for name in os.environ:
        if name.startswith("SLURM_") or name in cluster_doctor.MPIRUN_VARIABLES:
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(("more", "status"), [(0, Status.OK), (1, Status.FAIL)])
def test_mpirun_is_to_start_as_many_as_slurm_has_set_aside(
    monkeypatch: pytest.MonkeyPatch, more: int, status: Status
) -> None:
    tasks = str(MPI.COMM_WORLD.size + more)
    pretend_slurm(monkeypatch, SLURM_JOB_ID="1", SLURM_NTASKS=tasks, MPI_LOCALNRANKS="1")
    result = cluster_doctor.check_job()
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
    monkeypatch.setattr(cluster_doctor, "require_one_world", lambda: None)
    assert cluster_doctor.check_job().status is Status.OK


def test_the_world_is_the_one_that_srun_started(monkeypatch: pytest.MonkeyPatch) -> None:
    rank, size = MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size
    pretend_slurm(monkeypatch, SLURM_JOB_ID="1", SLURM_STEP_NUM_TASKS=str(size), SLURM_PROCID=str(rank))
    assert cluster_doctor.check_job().status is Status.OK


def assert_last_rank_failed(result: Result, problem: str) -> None:
    """It knows that itself, and rank 0 tells of it."""
    rank, last = MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size - 1
    if rank in (0, last):
        assert result.status is Status.FAIL
        assert f"rank {last} on " in result.found
        assert problem in result.found
        assert result.remedy
    else:
        assert result.status is Status.OK


def test_a_rank_with_the_number_of_another_is_named_on_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    rank, size = MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size
    number = rank if rank < size - 1 else 1000
    pretend_slurm(monkeypatch, SLURM_JOB_ID="1", SLURM_STEP_NUM_TASKS=str(size), SLURM_PROCID=str(number))
    result = cluster_doctor.check_job()
    assert_last_rank_failed(result, "SLURM_PROCID is 1000")


@pytest.mark.launch
def test_a_rank_that_hangs_is_named(mpirun: Callable[..., CompletedProcess[str]]) -> None:
    result = mpirun(2, "-c", RANK_1_HANGS)
    assert result.returncode != 0
    assert "[world rank 1 of 2]" in result.stderr
    assert "has not ended" in result.stderr


@pytest.mark.skipif(MPI.COMM_WORLD.size < 2, reason="ranks: needs two that differ; run under mpirun")
def test_a_folder_that_is_another_one_on_the_last_rank(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cluster_doctor, "SEEN_SECONDS", 1.0)
    rank, last = MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size - 1
    shared = MPI.COMM_WORLD.bcast(tmp_path)
    result = cluster_doctor.check_folder(tmp_path if rank == last else shared)
    assert_last_rank_failed(result, "not the same folder on every node")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    result = cluster_doctor.check_folder(tmp_path / "absent")
    assert result.status is Status.FAIL
    assert "FileNotFoundError" in result.found
    assert result.remedy


def test_a_folder_that_rank_0_cannot_write(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError("Disk quota exceeded")

    monkeypatch.setattr(os, "fsync", refuse)  # permissions would not stop root
    result = cluster_doctor.check_folder(MPI.COMM_WORLD.bcast(tmp_path))
    if MPI.COMM_WORLD.rank == 0:
        assert result.status is Status.FAIL
        assert "Disk quota exceeded" in result.found
    assert not list(tmp_path.iterdir())


@pytest.mark.launch
def test_a_node_that_does_not_serve_its_readers() -> None:
    result = on_two_nodes("-c", NOBODY_LOOKS)
    assert result.returncode != 0
    assert "rank 2 on node-b: a Get from rank 0 on node-a" in result.stdout
    assert "remedy: " in row_of(result.stdout, "window progress")
    assert "Training cannot run: window progress." in result.stdout


def test_every_rank_tells_which_gpu_it_would_train_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=f"{device}1234567-8"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    result = cluster_doctor.check_gpu_binding()
    assert result.status is Status.OK
    for rank in range(MPI.COMM_WORLD.size):
        gpu = rank % 2
        text = f"rank {rank} → {gpu}1234567 (cuda:{gpu} of 2, CUDA_VISIBLE_DEVICES 4,6)"
        assert text in result.found


def test_gpus_of_their_own() -> None:
    sights = [Sight(rank, f"node{rank // 2}", None, ("a", "b"), rank % 2) for rank in range(4)]
    result = binding(sights)
    assert result.status is Status.OK
    assert "node0: rank 0 → a (cuda:0 of 2, CUDA_VISIBLE_DEVICES unset), rank 1 → b" in result.found
    assert "node1: rank 2 → a" in result.found
    assert not result.remedy


def test_a_gpu_that_is_shared_while_another_is_idle() -> None:
    closest = [("a", "b"), ("c", "d")]
    sights = [Sight(rank, "node1", "x,y", closest[rank % 2], rank % 2) for rank in range(4)]
    result = binding(sights)
    assert result.status is Status.OK
    assert "node1: ranks 0, 2 share a and ranks 1, 3 share d while b, c idle" in result.found
    assert "--gpus-per-task" in result.remedy


def test_a_gpu_that_is_shared_because_there_are_no_more() -> None:
    result = binding([Sight(rank, "node1", None, ("a",), 0) for rank in range(2)])
    assert "idle" not in result.found
    assert not result.remedy


def test_a_rank_that_sees_no_gpu_though_others_do() -> None:
    result = binding([Sight(0, "node1", None, ("a",), 0), Sight(1, "node1", "", (), None)])
    assert result.status is Status.FAIL
    assert "rank 1 on node1" in result.found


def test_no_gpus_at_all() -> None:
    assert binding([Sight(0, "node1", None, (), None)]).status is Status.OPTIONAL
