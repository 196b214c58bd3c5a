"""Trackers: packages that are missing, runs that are resumed, and failures that cost records only."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hpcdistill.config.schema import Config
from hpcdistill.distributed.groups import Groups
from hpcdistill.distributed.single import SingleProcess
from hpcdistill.errors import UserError
from hpcdistill.models.registry import config_class
from hpcdistill.training.trackers.opening import open_trackers, require_trackers
from hpcdistill.training.trackers.tracker import Tracker

pytestmark = pytest.mark.alone

HEADER = {"config": {"seed": 3}, "starts": [{"time": 1.5}]}
RECORD = {"loss": 2.5, "staleness": {"1": 4}, "quarantine": {"1": "its snapshot is not finite"}}


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what the trackers set."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")


def config(folder: Path, **train: Any) -> Config:
    return config_class()(run_dir=folder / "mine", data={"path": "y"}, train=train)


def opened(run: Config, step: int = 0) -> list[Tracker]:
    run.run_dir.mkdir(exist_ok=True)
    return open_trackers(run, Groups.split(SingleProcess(), (1,), torch.device("cpu")), HEADER, step)


def test_a_resumed_training_goes_on_with_its_run_of_mlflow(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    run = config(tmp_path, mlflow="study")
    for steps in ((10, 20), (30,)):
        (tracker,) = opened(run, steps[0] - 10)
        for step in steps:
            tracker.record(step, RECORD)
        tracker.close()
    client = MlflowClient(tracking_uri=(run.run_dir / "mlruns").as_uri())
    (found,) = client.search_runs([client.get_experiment_by_name("study").experiment_id])
    assert (found.info.run_name, found.info.status) == ("mine-g0", "FINISHED")
    assert found.data.metrics == {"loss": 2.5, "staleness/1": 4.0}
    assert found.data.params == {"config.seed": "3", "starts": "[{'time': 1.5}]"}
    assert [metric.step for metric in client.get_metric_history(found.info.run_id, "loss")] == [10, 20, 30]


def test_a_resumed_training_goes_on_with_its_run_of_wandb(tmp_path: Path) -> None:
    import wandb

    run = config(tmp_path, wandb="study")
    for step in (10, 20):
        (tracker,) = opened(run, step - 10)
        tracker.record(step, RECORD)
        tracker.close()
    wandb.teardown()  # its service writes the last block of a file when it ends
    files = sorted((run.run_dir / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    assert len({file.name for file in files}) == 1  # the run ID, by which the service joins them
    for file in files:
        assert b"staleness/1" in file.read_bytes()


def test_a_tracker_that_cannot_be_opened_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = config(tmp_path, mlflow="study")
    run.run_dir.mkdir()
    (run.run_dir / "mlruns").write_text("no folder")
    assert opened(run) == []
    assert "warning: train.mlflow: no records go there in this start of the run: " in capsys.readouterr().err


def test_a_failure_costs_records_and_is_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Failing(Tracker):
        calls = 0

        def _write(self, step: int, numbers: dict[str, float]) -> None:
            self.calls += 1
            raise ConnectionError("the server is gone")

        def _close(self) -> None:
            self.calls += 1

    tracker = Failing("the tracker")
    for step in (10, 20):
        tracker.record(step, RECORD)
    tracker.close()
    assert tracker.calls == 1
    assert capsys.readouterr().err.count("records are missing from the tracker from now on: the server is gone") == 1


@pytest.mark.parametrize(("name", "value"), [("tensorboard", True), ("wandb", "study"), ("mlflow", "study")])
def test_a_missing_package_is_named(name: str, value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        UserError, match=rf"train\.{name} = {value}: .*; pip install 'hpcdistill\[{name}\]', or".lower()
    ):
        require_trackers(config(tmp_path, **{name: value}))
    require_trackers(config(tmp_path))
