"""Scores of models, of each run's ensemble and of the ensemble of all."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import saved_models
from hpcdistill.cli.main import main
from hpcdistill.config.data import DataConfig
from hpcdistill.errors import UserError
from hpcdistill.evaluation.evaluate import evaluate
from hpcdistill.models.saved import SavedModel
from hpcdistill.storage.metrics import read_run
from hpcdistill.tasks.objective import Softmax
from hpcdistill.tasks.registry import open_task

pytestmark = pytest.mark.alone


def test_text(tmp_path: Path) -> None:
    data, run = saved_models.text(tmp_path / "data.h5"), tmp_path / "run"
    paths = [saved_models.save(run, data, group, seed=group) for group in (0, 1)]
    task = open_task(data)
    (batch,) = task.validation(DataConfig(path=data, sequence_length=8))
    models = [SavedModel.load(path).build(task.store)(*batch.inputs) for path in paths]
    mean = (models[0].softmax(-1) + models[1].softmax(-1)).log() - math.log(2)
    found = evaluate([str(run)], data)
    assert (found.unit, found.predictions) == ("token", 12 * 8)
    assert [*found.scores] == [f"{run}:0", f"{run}:1", f"mean of {run}"]  # and not the same again as that of all
    for scores, outputs in zip(found.scores.values(), [*models, mean], strict=True):
        loss = Softmax(256).cross_entropy(outputs, batch.target).mean().item()
        assert scores["loss"] == pytest.approx(loss, rel=1e-5)
        assert scores["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
        assert 0 <= scores["accuracy"] <= 1
    assert found.scores[f"mean of {run}"]["loss"] < max(found.scores[f"{run}:{group}"]["loss"] for group in (0, 1))


def test_clicks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, run, other = saved_models.clicks(tmp_path / "data.h5", bayes_log_loss=0.5), tmp_path / "run", tmp_path / "two"
    for group in (0, 1):
        saved_models.save(run, data, group, seed=group)
    file = saved_models.save(other, data, seed=2)
    found = tmp_path / "new" / "found.json"
    command = ["evaluate", str(run), str(file), f"{other}:0", "--data", str(data), "--json", str(found)]
    assert main([*command, "--checkpoint", "last"]) == 0
    result = json.loads(found.read_text())
    names = [f"{run}:0", f"{run}:1", str(file), f"{other}:0", f"mean of {run}", "mean of all"]
    assert [*result["scores"]] == names
    assert (result["unit"], result["predictions"]) == ("row", 100)
    for scores in result["scores"].values():
        assert scores["above_bayes"] == scores["log_loss"] - 0.5
        assert 0 < scores["auc"] < 1
    titles, *lines = capsys.readouterr().out.splitlines()
    assert titles.split("  ")[-1] == "calibration error"
    assert next(line for line in lines if line.startswith(f"{file} ")).split()[1:] == [
        f"{value:.4f}" for value in result["scores"][str(file)].values()
    ]
    assert lines[-1] == f"100 validation rows of {data}, losses in nats per row"


def test_bad_input_is_named(tmp_path: Path) -> None:
    data, more = saved_models.clicks(tmp_path / "data.h5"), saved_models.text(tmp_path / "text.h5")
    of_clicks, of_text = (str(saved_models.save(tmp_path / store.stem, store)) for store in (data, more))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty is no checkpoint file, and no run folder with a last checkpoint; name"):
        evaluate([str(tmp_path / "empty")], data, "last")
    with pytest.raises(
        UserError, match=r"of a model for other data than .*, which is a store of rows: model.name = 'l"
    ):
        evaluate([of_clicks, of_text], data)
    (tmp_path / "broken.h5").write_bytes(b"not HDF5")
    with pytest.raises(UserError, match="not a complete HDF5 file"):
        evaluate([of_clicks], tmp_path / "broken.h5")
    with pytest.raises(UserError, match=r"was trained on .*data.h5, .* on .*text.h5; name the data with --data"):
        evaluate([of_clicks, of_text], None)


@pytest.mark.launch
def test_a_trained_model_is_as_good_as_its_training_said(mpirun: Callable[..., Any], tmp_path: Path) -> None:
    data, run = saved_models.text(tmp_path / "data.h5"), tmp_path / "run"
    (tmp_path / "run.toml").write_text(f"""
        run_dir = "{run}"
        groups = 1
        model = {{hidden = 4, layers = 1}}
        data = {{path = "{data}", batch_size = 4, sequence_length = 8}}
        codistill.weight = 0
        train = {{steps = 4, validate_every = 2}}
    """)
    trained = mpirun(1, "-m", "hpcdistill", "train", tmp_path / "run.toml")
    assert trained.returncode == 0, trained.stderr
    (metrics,) = read_run(run)
    (scores,) = evaluate([str(run)], data, "last").scores.values()
    assert scores["loss"] == pytest.approx(metrics.column("validation_loss")[1][-1], rel=1e-5)
