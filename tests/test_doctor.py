"""doctor: says what works, and names the remedy for what does not."""

import os
import subprocess
import sys
from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

from hpcdistill import doctor
from hpcdistill.doctor import Result, Status

WITHOUT_H5PY = """
import sys
sys.modules["h5py"] = None  # `import h5py` raises ImportError
from hpcdistill.doctor import main
sys.exit(main())
"""


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
