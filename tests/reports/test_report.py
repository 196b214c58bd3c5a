"""The page of a report: its table, its lists and its names."""

import html
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest

from hpcdistill.reports.compare import compare, draw_comparison
from hpcdistill.reports.report import write_report
from hpcdistill.reports.tables import print_result
from hpcdistill.storage.run_dir import RunDir

pytestmark = pytest.mark.alone

HEADER = {
    "config": {"data": {"batch_size": 16}},
    "ranks_per_group": 2,
    "parameters": 1000,
    "data_source": "a <book>",
    "unit": "token",
}


def write(run: Path, group: int, *records: dict[str, Any], **header: Any) -> None:
    run.mkdir(exist_ok=True)
    lines = [HEADER | header, *records, {"step": 400, "seconds": 40.0, "validation_loss": 1.5}]
    RunDir(run).metrics(group).write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def step(number: int, quarantine: dict[str, str] | None = None) -> dict[str, Any]:
    record = {"step": number, "seconds": number / 10, "loss": 2.0, "steps": 10, "staleness": {}}
    return record if quarantine is None else record | {"quarantine": quarantine}


def checkpoint(number: int, seconds: float) -> dict[str, Any]:
    return {"step": number, "seconds": number / 10, "checkpoint_seconds": seconds}


def page(*runs: Path) -> str:
    output = runs[0] / "report.html"
    write_report(runs, output)
    return output.read_text()


def column(page: str, title: str) -> list[str]:
    """Return the cells of one column of the page's first table."""
    titles = re.findall("<th>(.*?)</th>", page)
    rows = [re.findall("<td[^>]*>(.*?)</td>", row) for row in page.splitlines() if row.startswith("<tr><td")]
    return [row[titles.index(title)] for row in rows]


def test_restarts_and_the_time_lost_by_checkpoints_are_columns(tmp_path: Path) -> None:
    starts = [{"step": 0}, {"step": 100}, {"step": 200}]
    write(tmp_path / "run", 0, checkpoint(100, 0.25), checkpoint(200, 0.75), starts=starts)
    write(tmp_path / "run", 1)  # as of a version that did not record them
    text = page(tmp_path / "run")
    assert column(text, "restarts") == ["2", "0"]
    assert column(text, "seconds lost per checkpoint") == ["0.500", "-"]


def test_quarantines_are_listed_from_when_to_when_and_why(tmp_path: Path) -> None:
    write(
        tmp_path / "run",
        0,
        step(10),
        step(20, {"1": "a loss of 9 > 3", "10": "away"}),
        checkpoint(25, 0.5),  # a record without peers
        step(30, {"1": "a loss of 8 > 3"}),
        step(40, {}),
        step(50, {"1": "again", "2": "torn"}),
        step(60, {"2": "torn"}),
    )
    write(tmp_path / "run", 1, step(10))
    assert re.findall("<li>(.*)</li>", page(tmp_path / "run")) == [
        "run, group 0: group 1 from step 20 to 40: a loss of 9 &gt; 3",
        "run, group 0: group 1 from step 50 to 60: again",
        "run, group 0: group 2 from step 50 to the end: torn",
        "run, group 0: group 10 from step 20 to 30: away",
    ]


@pytest.mark.parametrize("quarantine", [None, {}])
def test_without_quarantine_there_is_no_list(quarantine: dict[str, str] | None, tmp_path: Path) -> None:
    write(tmp_path / "run", 0, step(10, quarantine))
    assert "uarantine" not in page(tmp_path / "run")


NAMES = ["<script>alert(1)<", r"a$\frac$b", "_x", "a\n\tb", "{&amp;} ü日本"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", [*NAMES, os.fsdecode(b"not\xffutf-8")])
def test_a_run_may_have_any_name(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {"groups": 1, "data": {"batch_size": 16}}
    write(tmp_path / name, 0, step(10), config=config)
    shown = name.replace("\n", r"\n").replace("\t", r"\t").replace("\udcff", r"\udcff")
    text = page(tmp_path / name)
    assert f"<h1>Codistillation: {html.escape(shown)}</h1>" in text
    assert column(text, "") == [f"{html.escape(shown)}, group 0"]
    in_a_legend = f">{html.escape(shown, quote=False)}, group 0</text>"
    assert (text.count(in_a_legend), text.count("<svg")) == (7, 5)
    assert "<script" not in text
    capsys.readouterr()
    draw_comparison(compare([tmp_path / name]), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert f"<h1>Steps to a loss: {html.escape(shown)}</h1>" in text
    assert text.count(in_a_legend) == 3
    found = compare([tmp_path / name])
    print_result(found.table(), found, tmp_path / "found.json")
    assert f"{tmp_path}/{shown}  1 " in capsys.readouterr().out
    assert json.loads((tmp_path / "found.json").read_text())["runs"][0]["run"] == str(tmp_path / name)


def test_a_run_without_a_finite_loss_has_a_report(tmp_path: Path) -> None:
    for name, loss in (("one", math.nan), ("other", 1.25)):
        write(tmp_path / name, 0, {"step": 400, "seconds": 40.0, "validation_loss": loss})
    path = RunDir(tmp_path / "one").metrics(0)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))  # without the last one, of 1.5
    text = page(tmp_path / "one", tmp_path / "other")
    assert column(text, "best validation loss") == ["-", "1.250"]
    assert column(text, "steps to -") == ["not reached", "not reached"]


def test_gradient_rate_and_throughput_are_curves(tmp_path: Path) -> None:
    meters = {"gradient_norm": 1.5, "learning_rate": 0.1, "items_per_second": 900.0, "distillation_share": 0.25}
    write(tmp_path / "run", 0, *[step(number) | meters | {"staleness": {"1": 5}} for number in (50, 100)])
    shown = page(tmp_path / "run")
    for text in ("Gradient and learning rate", "tokens per second and group", "Share of the distillation term"):
        assert text in shown


def test_a_page_begins_with_its_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "run", 0)
    write_report([tmp_path / "run"], tmp_path / "report.html", ["A < B."])
    text = (tmp_path / "report.html").read_text()
    assert text.index("<p>A &lt; B.</p>") < text.index("<p>Data: ")
    assert capsys.readouterr().out.startswith("A < B.\n")


def test_meters_are_curves_where_they_are_measured(tmp_path: Path) -> None:
    parts = {"data": 0.1, "teachers": 0.0, "exchange": 0.1, "averaging": 0.3, "compute": 0.5}
    noise = {"noise_scale": 500.0, "critical_batch": 100.0, "part_seconds": parts}
    validation = {"validation_loss": 1.5, "ensemble_loss": 1.0, "members_loss": [1.2, 1.3], "loss_slope": 0.1}
    write(tmp_path / "run", 0, step(50) | noise, step(60), {"step": 60, "seconds": 6.0, **validation})
    write(tmp_path / "plain", 0, step(50))
    titles = ("Gradient noise scale", "Ensemble of the groups", "Progress of the loss", "Parts of a step")
    assert [title in page(tmp_path / "run") for title in titles] == [True] * 4
    assert [title in page(tmp_path / "plain") for title in titles] == [False] * 4
    assert "plain, group 0: noise scale" not in page(tmp_path / "run", tmp_path / "plain")
