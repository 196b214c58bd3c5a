"""Data of a user's own in `hpcdistill train`: what happens to all ranks when reading fails on one."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from repository import ROOT

pytestmark = pytest.mark.launch

PATHS = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'support'}"}
CONFIG = """
groups = 2
model = {name = "factory", factory = "torch.nn:Linear", args = {in_features = 1, out_features = 5}}
train.steps = 1000
[data]
factory = "own_data:numbers"
classes = 5
batch_size = 4
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "run.toml").write_text(f'run_dir = "{tmp_path / "run"}"\n' + CONFIG)
    return tmp_path / "run.toml"


def test_a_process_that_dies_ends_all_ranks(mpirun: Callable[..., CompletedProcess[str]], config: Path) -> None:
    """Two ranks have two processes each; one process of one group dies at its 20th example, of 1000."""
    bad = json.dumps({"count": 2000, "bad": {"38": "dies"}})
    result = mpirun(2, "-m", "hpcdistill", "train", config, "--data.args", bad, "--data.workers=2", env=PATHS)
    assert result.returncode not in (0, 75), result.stderr
    assert "of the training data failed: a process of data.workers has died (" in result.stderr
    assert "Traceback" not in result.stderr


def test_ranks_with_different_data_are_refused(mpirun: Callable[..., CompletedProcess[str]], config: Path) -> None:
    result = mpirun(2, "-m", "hpcdistill", "train", config, "--data.factory=own_data:unequal", env=PATHS)
    assert result.returncode != 0
    assert (
        "data.factory = 'own_data:unequal' differs between ranks: 40 training and 12 validation examples, digest"
        in result.stderr
    )
