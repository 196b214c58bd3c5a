"""The command evaluate: its table and its JSON."""

import json
from pathlib import Path

import pytest

import saved_models
from hpcdistill.cli.main import main
from without_modules import run_without

pytestmark = pytest.mark.alone


def test_scores_that_are_undefined_with_one_class_are_a_dash_and_null(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = saved_models.clicks(tmp_path / "data.h5", labels=(0,))
    file, found = saved_models.save(tmp_path / "run", data), tmp_path / "found.json"
    assert main(["evaluate", str(file), "--data", str(data), "--json", str(found)]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[2:4] == ["-", "-"]
    scores = json.loads(found.read_text())["scores"][str(file)]
    assert [name for name, score in scores.items() if score is None] == ["above_bayes", "auc", "calibration"]


@pytest.mark.launch
def test_it_needs_no_mpi(tmp_path: Path) -> None:
    data = saved_models.clicks(tmp_path / "data.h5")
    file = saved_models.save(tmp_path / "run", data)
    result = run_without("mpi4py,horovod,matplotlib,tqdm", "evaluate", file, "--data", data)
    assert result.returncode == 0, result.stderr
    assert "100 validation rows" in result.stdout
