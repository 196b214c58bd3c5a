"""Churn of two models' predictions, and its interval."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import saved_models
from hpcdistill.cli.main import main
from hpcdistill.errors import UserError
from hpcdistill.evaluation.churn import churn, estimates
from hpcdistill.models.saved import SavedModel
from hpcdistill.tasks.registry import open_task

pytestmark = pytest.mark.alone


def test_the_interval_is_that_of_the_mean() -> None:
    values = np.random.default_rng(1).normal(3, 2, (1000, 2))
    for estimate, column in zip(estimates(values), values.T, strict=True):
        error = column.std() / math.sqrt(len(column))
        assert estimate.value == pytest.approx(column.mean())
        assert estimate.low == pytest.approx(column.mean() - 1.96 * error, abs=0.3 * error)
        assert estimate.high == pytest.approx(column.mean() + 1.96 * error, abs=0.3 * error)
    assert estimates(values) == estimates(values)


def test_churn_of_clicks_is_what_the_paper_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = saved_models.clicks(tmp_path / "data.h5")
    paths = [saved_models.save(tmp_path / "run", data, group, seed=group) for group in range(3)]
    task = open_task(data)
    rows = task.store.read("validation", 0, 100)
    inputs = torch.from_numpy(rows.dense), torch.from_numpy(rows.categorical)
    chances = [SavedModel.load(path).build(task.store)(*inputs).sigmoid().double() for path in paths]
    pair, alone = (chances[0] + chances[1]) / 2, chances[2]

    run, found = tmp_path / "run", tmp_path / "found.json"
    assert main(["churn", f"{run}:0,{run}:1", str(paths[2]), "--data", str(data), "--json", str(found)]) == 0
    result = json.loads(found.read_text())
    assert (result["a"], result["b"]) == ([f"{run}:0", f"{run}:1"], [str(paths[2])])
    assert result["samples"] == 100
    difference, disagreement = result["mean_absolute_difference"], result["disagreement"]
    assert difference["value"] == pytest.approx((pair - alone).abs().mean().item(), rel=1e-4)
    assert difference["low"] < difference["value"] < difference["high"]
    assert disagreement["value"] == ((pair > 0.5) != (alone > 0.5)).double().mean().item()
    table = capsys.readouterr().out
    assert f"mean absolute difference  {difference['value']:.5f}  {difference['low']:.5f} to" in table


def test_churn_of_text_counts_sequences(tmp_path: Path) -> None:
    data = saved_models.text(tmp_path / "data.h5")
    for group in (0, 1):
        saved_models.save(tmp_path / "run", data, group, seed=group)
    found = churn(f"{tmp_path / 'run'}:0", f"{tmp_path / 'run'}:1", data, "last")
    assert found.samples == 12
    assert 0 < found.mean_absolute_difference.value < found.disagreement.value < 1
    same = churn(f"{tmp_path / 'run'}:0", f"{tmp_path / 'run'}:0", data)
    assert same.mean_absolute_difference.high == same.disagreement.high == 0


def test_bad_input_is_named(tmp_path: Path) -> None:
    text, clicks = saved_models.text(tmp_path / "text.h5"), saved_models.clicks(tmp_path / "clicks.h5")
    run = tmp_path / "run"
    of_text = [str(saved_models.save(run, text, group)) for group in (0, 1)]
    of_clicks = str(saved_models.save(tmp_path / "clicks", clicks))
    of_longer = str(saved_models.save(tmp_path / "longer", text, length=16))
    for names, data, message in (
        ((str(tmp_path), of_text[0]), text, "is no checkpoint file, and no run folder with a best checkpoint; name"),
        ((f"{run}:7", of_text[0]), text, "names group 7, but .* has best checkpoints of group 0, 1 only; choose"),
        ((str(run), of_text[0]), text, f"holds 2 models; choose one of them, or the mean of all with {run}:0,{run}:1"),
        ((of_text[0], of_clicks), text, "clicks.* of a model for other data .*: model.name = 'dnn' there; name the"),
        (
            (of_text[0], of_longer),
            text,
            "sequences of 16 tokens, .* of 8 tokens; compare models of the same data.sequence_",
        ),
        ((of_text[0], of_text[1]), tmp_path / "none.h5", "no such file; make one with: hpcdistill prepare"),
        ((str(text), of_text[0]), text, "text.h5 is not a checkpoint of hpcdistill"),
    ):
        with pytest.raises(UserError, match=message):
            churn(*names, data)
