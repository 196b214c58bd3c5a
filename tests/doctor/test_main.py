"""The command doctor: it reports what works, and the remedy for what does not."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from doctor_results import row_of
from hpcdistill.doctor import gradients, machine, mpi
from without_modules import run_without

pytestmark = pytest.mark.launch


HOROVOD_ON_RANK_0_ALONE = """
import sys
from mpi4py import MPI
from hpcdistill.doctor import main
if MPI.COMM_WORLD.rank == 1:
    sys.modules["horovod"] = None
sys.exit(main.check_all())
"""

RANK_1_FAILS = """
import sys
from mpi4py import MPI
from hpcdistill.doctor import main
main.CHECK_SECONDS = 1

def check():
    if MPI.COMM_WORLD.rank == 1:
        raise RuntimeError("alone")
    MPI.COMM_WORLD.Barrier()

sys.exit(main.print_checks([("collective", check, "ask again")]))
"""


def test_all_that_training_needs_works_here() -> None:
    result = subprocess.run([sys.executable, "-m", "hpcdistill", "doctor"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    for name, _, _ in [mpi.WORLD, *mpi.CHECKS, *gradients.CHECKS, *machine.CHECKS]:
        assert f"\n{name} " in f"\n{result.stdout}"
    assert "Training can run." in result.stdout


def test_one_table_for_all_ranks(mpirun: Callable[..., CompletedProcess[str]]) -> None:
    result = mpirun(2, "-m", "hpcdistill", "doctor")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("Training can run.") == 1
    assert "world of 2" in result.stdout
    assert "built with MPI; averaged" in row_of(result.stdout, "Horovod")
    for row in ("Horovod", "torch DDP"):
        assert "averaged a gradient on cpu, 2 rank(s)" in row_of(result.stdout, row)


def test_a_missing_package_fails_with_its_remedy() -> None:
    result = run_without("h5py", "doctor")
    assert result.returncode == 1
    lines = result.stdout.splitlines()
    row = next(index for index, line in enumerate(lines) if line.startswith("HDF5"))
    assert "FAIL" in lines[row]
    assert "h5py" in lines[row]
    assert lines[row + 1].strip() == "remedy: run `make setup`"
    assert lines[-1] == "Training cannot run: HDF5."
    assert "Traceback" not in result.stdout + result.stderr


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


def test_a_check_that_one_rank_fails_does_not_keep_the_others_for_ever(
    mpirun: Callable[..., CompletedProcess[str]],
) -> None:
    result = mpirun(2, "-c", RANK_1_FAILS)
    assert result.returncode != 0
    assert "On rank 1:\ncollective      FAIL" in result.stdout
    assert "'collective' has not ended" in result.stderr


def test_horovod_on_one_rank_alone_is_a_failure_of_all(mpirun: Callable[..., CompletedProcess[str]]) -> None:
    result = mpirun(2, "-c", HOROVOD_ON_RANK_0_ALONE)
    assert result.returncode == 1
    assert "FAIL               not installed for rank 1" in row_of(result.stdout, "Horovod")


def test_without_horovod_the_other_backend_is_named() -> None:
    result = run_without("horovod", "doctor")
    assert result.returncode == 0
    assert "missing, optional" in row_of(result.stdout, "Horovod")
    assert "--gradients=torch" in row_of(result.stdout, "Horovod")


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


def test_without_mpi_the_way_to_train_is_named() -> None:
    result = run_without("mpi4py", "doctor", "--slurm")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "missing, optional" in row_of(result.stdout, "MPI")
    assert "train with --exchange.transport=files --gradients=torch" in row_of(result.stdout, "MPI")
    assert "MPI windows" not in result.stdout
    assert "it needs MPI" in row_of(result.stdout, "Horovod")
    assert "OK" in row_of(result.stdout, "torch DDP")


def test_a_folder_to_check_is_for_slurm() -> None:
    command = [sys.executable, "-m", "hpcdistill", "doctor", "--folder=."]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert "--folder" in result.stderr
    assert "--slurm" in result.stderr
