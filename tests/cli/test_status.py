"""The command status."""

from pathlib import Path

import pytest

from metrics_files import write
from without_modules import run_without


@pytest.mark.launch
def test_it_needs_no_package_of_training(tmp_path: Path) -> None:
    write(tmp_path, 0, {"step": 200, "seconds": 20.1, "validation_loss": 1.5})
    result = run_without("mpi4py,horovod,torch,h5py,matplotlib,tqdm", "status", tmp_path)
    assert result.returncode == 0, result.stderr
    assert "finished" in result.stdout
