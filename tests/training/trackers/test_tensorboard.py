"""TensorBoard event files: each number of the metrics, once."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from hpcdistill.data.tokens.prepare_text import prepare_text
from hpcdistill.storage.metrics import read_metrics
from hpcdistill.storage.run_dir import RunDir
from hpcdistill.training.trackers.tensorboard import TensorBoard

pytestmark = pytest.mark.alone

event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

CONFIG = """
[model]
hidden = 16
layers = 1
[codistill]
burn_in = 5
exchange_interval = 5
[train]
steps = 20
validate_every = 10
tensorboard = true
[checkpoint]
interval = 10
"""


@pytest.fixture
def train(mpirun: Callable[..., CompletedProcess[str]], tmp_path: Path) -> Callable[..., CompletedProcess[str]]:
    """Return `train(*options)`, which trains two groups of one rank."""
    config = tmp_path / "run.toml"
    config.write_text(f'run_dir = "{tmp_path / "run"}"\n{CONFIG}')
    command = ("-m", "hpcdistill", "train", config, f"--data.path={tmp_path / 'data.h5'}")
    return lambda *options, **mpirun_options: mpirun(2, *command, *options, **mpirun_options)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the numbers in nested values, by path."""
    numbers: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, list):
            value = {str(index): item for index, item in enumerate(value)}
        if isinstance(value, dict):
            numbers |= flat(value, f"{prefix}{name}/")
        elif not isinstance(value, str):
            numbers[f"{prefix}{name}"] = value
    return numbers


def events(folder: Path) -> list[tuple[int, str, float]]:
    accumulator = event_accumulator.EventAccumulator(str(folder), size_guidance={event_accumulator.SCALARS: 0})
    accumulator.Reload()
    return sorted(
        (event.step, tag, event.value) for tag in accumulator.Tags()["scalars"] for event in accumulator.Scalars(tag)
    )


@pytest.mark.launch
def test_they_tell_what_the_metrics_tell(train: Callable[..., CompletedProcess[str]], tmp_path: Path) -> None:
    """Compare after a restart from step 10, too, when the files of both had reached step 20."""
    prepare_text([Path(asyncio.__file__).parent], tmp_path / "data.h5", include="*.py")
    assert train().returncode == 0
    for newest in (tmp_path / "run" / "checkpoints").glob("g?-step0000000020.h5"):
        newest.unlink()
    result = train("--resume", "--train.steps=30")
    assert result.returncode == 0, result.stderr
    for group in (0, 1):
        _, records = read_metrics(RunDir(tmp_path / "run").metrics(group))
        told = sorted(
            (record["step"], name, value)
            for record in records
            for name, value in flat(record).items()
            if name not in ("step", "seconds")
        )
        seen = events(tmp_path / "run" / "tensorboard" / f"g{group}")
        assert [event[:2] for event in seen] == [number[:2] for number in told]
        assert [event[2] for event in seen] == pytest.approx([number[2] for number in told], rel=1e-6)  # as float32
        names = {name for _, name, _ in seen}
        assert {"loss", "validation_loss", "checkpoint_seconds", "part_seconds/exchange", "bytes/published"} <= names


def test_reasons_are_no_numbers(tmp_path: Path) -> None:
    writer = TensorBoard(tmp_path, step=0)
    writer.record(10, {"staleness": {1: 5}, "quarantine": {1: "its snapshot is not finite"}})
    writer.close()
    assert events(tmp_path) == [(10, "staleness/1", 5.0)]


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)  # TensorBoard's thread ends with an error
def test_a_disk_that_takes_no_more_costs_events_but_not_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = TensorBoard(tmp_path / "g0", step=0)
    thread = threading.enumerate()[-1]
    (tmp_path / "g0").rename(tmp_path / "elsewhere")  # atomically, whatever the thread does there
    for step in range(10, 1000, 10):
        writer.record(step, {"loss": 1.0})
    writer.close()
    thread.join()
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hpcdistill: warning: ")]
    assert len(warnings) == 1
    assert f"records are missing from TensorBoard's events in {tmp_path / 'g0'} from now on" in warnings[0]


@pytest.mark.launch
def test_without_the_package_every_rank_ends_with_a_word(
    train: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "tensorboard.py").write_text("raise ModuleNotFoundError(\"No module named 'tensorboard'\")")
    result = train(env={"PYTHONPATH": str(tmp_path)})
    assert result.returncode != 0
    assert "train.tensorboard = true: No module named 'tensorboard'; pip install" in result.stderr
    assert "Traceback" not in result.stderr
