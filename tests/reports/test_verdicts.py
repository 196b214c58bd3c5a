"""Verdicts of reports: on codistilled runs, with names where there are several, whatever their metrics hold."""

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from hpcdistill.reports.report import write_report
from hpcdistill.reports.verdicts import read_verdicts
from hpcdistill.storage.run_dir import RunDir
from pilots import write_pilot

pytestmark = pytest.mark.alone


def write_run(run: Path, **settings: Any) -> Path:
    return write_pilot(run, until=600, teacher=0.01, parameters=1000, **settings)


def test_a_report_begins_with_the_verdict_and_ends_with_its_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", noise_scale=320)
    write_report([run], run / "report.html")
    verdict, churn, report = capsys.readouterr().out.splitlines()
    assert verdict.startswith("Verdict: more workers, because the gradient noise scale is ")
    assert churn.startswith("If reproducible predictions")
    assert report.startswith("report: ")
    page = (run / "report.html").read_text()
    paragraphs = re.findall("<p>(.*?)</p>", page)
    assert paragraphs[:2] == [verdict, churn]
    tables = page[page.rindex("</svg>") :]
    assert "<h2>More workers, or another group?</h2>" in tables
    assert '<td>2 x 1</td><td class="number">16</td>' in tables
    assert "<td>a teacher in a step</td>" in tables


def test_several_runs_are_named(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name) for name in ("a<b", "c")]
    write_report([*runs, write_run(tmp_path / "alone", groups=1)], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert [text[:13] for text in re.findall("<p>(.*?): Verdict", page)] == ["a&lt;b", "c"]
    assert "another group? a&lt;b</h2>" in page


@pytest.mark.parametrize("settings", [{"teachers": "self", "weight": 1.0}, {"teachers": "peers", "weight": 0.0}])
def test_groups_that_do_not_teach_each_other_get_no_verdict(settings: dict[str, Any], tmp_path: Path) -> None:
    assert not read_verdicts([write_run(tmp_path / "run", config={"groups": 2, "codistill": settings})])
    assert read_verdicts([write_run(tmp_path / "other")])


def test_a_burn_in_that_is_too_short_is_said(tmp_path: Path) -> None:
    (found,) = read_verdicts([write_pilot(tmp_path / "run", until=60)])
    assert found.plan is None
    assert found.sentences[0].startswith("No verdict on more workers or another group: ")
    assert "is too short for a plan" in found.sentences[0]


def test_damaged_metrics_leave_a_report(tmp_path: Path) -> None:
    """Replace some values by others that records may have; each page has a verdict or the reason for none."""
    rng = random.Random(0)
    path = RunDir(write_run(tmp_path / "run")).metrics(0)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for _ in range(60):
        changed = [dict(line) for line in lines]
        for line in [changed[0], *rng.sample(changed, 20)]:
            key = rng.choice([*line])
            line[key] = rng.choice([None, -1, 0, 1e300, "x", [], {}, True])
        path.write_text("".join(f"{json.dumps(line)}\n" for line in changed))
        for found in read_verdicts([tmp_path / "run"]):
            assert re.match("Verdict|No verdict", found.sentences[0])
