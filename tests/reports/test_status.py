"""The table of a run, which may be in progress, and of which some files may be missing."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from hpcdistill.cli.main import main
from hpcdistill.errors import UserError
from hpcdistill.reports.status import status
from hpcdistill.storage.checkpoints import Checkpoints
from hpcdistill.storage.run_dir import RunDir
from metrics_files import write

pytestmark = pytest.mark.alone


def step(number: int, **values: Any) -> dict[str, Any]:
    return {"step": number, "seconds": number / 10, "loss": 2.0, "steps": 10, "staleness": {}, **values}


def is_from(path: Path, seconds_ago: float) -> None:
    os.utime(path, (time.time() - seconds_ago,) * 2)


def rows(run: Path, capsys: pytest.CaptureFixture[str]) -> tuple[list[dict[str, str]], list[str]]:
    """Return the cells of each row by the title of their column, and the lines below the table."""
    assert main(["status", str(run)]) == 0
    table, _, below = capsys.readouterr().out.partition("\n\n")
    titles, *lines = table.splitlines()
    names = titles.split()
    begins = [titles.index(f" {name}") + 1 if index else 0 for index, name in enumerate(names)]
    cells = [[line[b:e].strip() for b, e in zip(begins, [*begins[1:], None], strict=True)] for line in lines]
    return [dict(zip(names, row, strict=True)) for row in cells], below.splitlines()


def test_a_running_group_tells_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(
        tmp_path,
        0,
        step(90, loss=1.9),
        {"step": 100, "seconds": 9.5, "validation_loss": 1.25},
        step(110, loss=1.8),
        {"step": 110, "seconds": 11.0, "validation_loss": 1.5},
        step(120, loss=1.75, staleness={"1": 50, "2": 100}, quarantine={"1": "its snapshot of step 50 is not finite"}),
        {"step": 120, "seconds": 12.5, "checkpoint_seconds": 0.1},
        config={"groups": 3, "train": {"steps": 200}},
        starts=[{"step": 0}, {"step": 50}, {"step": 100, "slurm_restart_count": 1}],
    )
    is_from(path, seconds_ago=300)
    checkpoints = Checkpoints(RunDir(tmp_path), group=0, keep=2, owner={})
    for saved in (50, 100):
        checkpoints.save(saved, {"weight": torch.zeros(1)}, is_best=True)
    is_from(tmp_path / "checkpoints" / "g0-step0000000100.h5", seconds_ago=3 * 3600)
    table, below = rows(tmp_path, capsys)
    assert table[0] == {
        "group": "0",
        "state": "last heard 5 min ago",
        "step": "120 / 200",
        "steps/s": "8.57",  # 30 steps in 3.5 s
        "loss": "1.750",
        "validation": "1.500",
        "best": "1.250",
        "staleness": "1:50 2:100",
        "restarts": "2 (Slurm: 1)",
        "checkpoint": "step 100, 3 h ago",
        "quarantine": "1",
    }
    assert [row["state"] for row in table[1:]] == ["not started", "not started"]
    assert below == ["group 0 keeps group 1 in quarantine: its snapshot of step 50 is not finite"]


def test_a_finished_run_has_no_peer_in_quarantine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [step(100, quarantine={"1": "it was too far off"}), step(200, quarantine={})]
    after = {"step": 200, "seconds": 20.1, "validation_loss": 1.5}
    write(tmp_path, 0, *records, after)
    write(tmp_path, 1, step(200), after)
    table, below = rows(tmp_path, capsys)
    assert [row["state"] for row in table] == ["finished", "finished"]
    assert [row["quarantine"] for row in table] == ["-", "-"]
    assert below == []


def test_a_run_whose_last_validation_is_owed_is_not_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    validated = {"step": 100, "seconds": 10.0, "validation_loss": 1.5}
    write(tmp_path, 0, step(100), validated, step(200))
    write(tmp_path, 1, step(100), validated, step(200), {"step": 200, "seconds": 20.1, "validation_loss": None})
    table, below = rows(tmp_path, capsys)
    assert [row["step"] for row in table] == ["200 / 200"] * 2
    assert table[0]["state"].startswith("last heard ")
    assert table[1]["state"] == "finished"  # a loss that is not finite is a validation too
    (note,) = below
    assert note.startswith("group 0 has made its last step, but not the validation after it; ")
    assert note.endswith("train --resume makes up for that")


def test_the_speed_is_that_of_recent_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fast = [step(number, seconds=number / 100) for number in range(1, 101)]
    slow = [step(number, seconds=1 + (number - 100) * 50) for number in range(101, 151)]
    write(tmp_path, 0, *fast, *slow)
    assert rows(tmp_path, capsys)[0][0]["steps/s"] == "0.02"


@pytest.mark.parametrize("text", ["", '{"config": {"grou'])
def test_files_that_are_only_beginning(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One group has only a header, the other not even that."""
    write(tmp_path, 0)
    RunDir(tmp_path).metrics(1).write_text(text)
    (begun, waiting), _ = rows(tmp_path, capsys)
    assert begun.pop("state").startswith("last heard ")
    assert (begun.pop("group"), begun.pop("step"), begun.pop("restarts")) == ("0", "0 / 200", "0")
    assert (waiting.pop("group"), waiting.pop("state")) == ("1", "not started")
    assert {*begun.values(), *waiting.values()} == {"-"}


def test_half_a_line_and_files_that_go_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A link to nowhere is like a file that is listed, and gone when it is opened."""
    with write(tmp_path, 0, step(100)).open("a") as file:
        file.write('{"step": 110, "sec')
    (tmp_path / "checkpoints").mkdir()
    for path in (RunDir(tmp_path).metrics(1), tmp_path / "checkpoints" / "g0-step0000000100.h5"):
        path.symlink_to("nowhere")
    table, _ = rows(tmp_path, capsys)
    assert (table[0]["step"], table[0]["checkpoint"]) == ("100 / 200", "step 100, now gone")
    assert table[1]["state"] == "not started"


@pytest.mark.parametrize("folder", ["", "nowhere"])
def test_a_folder_of_no_run_is_refused(folder: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path / folder} holds no metrics of a run; name the run_dir"):
        status(tmp_path / folder)
