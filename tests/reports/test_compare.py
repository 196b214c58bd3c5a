"""compare: what runs took to reach a loss, from metrics of which the answer is known."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from hpcdistill.cli.main import main
from hpcdistill.errors import UserError
from hpcdistill.reports.compare import Reached, compare, draw_comparison
from hpcdistill.storage.metrics import metrics_path


def write(run: Path, *losses: Sequence[float], batch: int = 16, unit: str = "token") -> Path:
    """A run with one group for each of `losses`, which are those of steps 100, 200… at ten steps a second."""
    run.mkdir()
    config = {"groups": len(losses), "data": {"batch_size": batch}}
    for group, of_group in enumerate(losses):
        header = {"config": config, "ranks_per_group": 2, "data_source": "a <book>", "unit": unit}
        records = [
            {"step": step, "seconds": step / 10, "validation_loss": loss}
            for step, loss in zip(range(100, 10000, 100), of_group, strict=False)
        ]
        metrics_path(run, group).write_text("".join(f"{json.dumps(line)}\n" for line in [header, *records]))
    return run


def test_runs_are_measured_by_the_first_one(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain", [3.0, 2.5, 2.0, 1.9], batch=32)
    taught = write(tmp_path / "taught", [3.0, 2.1, 1.8, 1.7], [2.8, 1.9, 2.0, 1.6])
    found = compare([plain, taught])
    assert (found.target, found.unit) == (1.9, "nats per token")  # plain's best: the other one's is lower
    baseline, codistilled = found.runs
    assert (baseline.groups, baseline.ranks, baseline.batch, baseline.examples_per_step) == (1, 2, 32, 32)
    assert (codistilled.groups, codistilled.ranks, codistilled.batch, codistilled.examples_per_step) == (2, 4, 16, 32)
    assert (baseline.best, codistilled.best) == (1.9, 1.6)
    assert baseline.reached == Reached(0, 400, 40.0, 400 * 32)
    assert codistilled.reached == Reached(1, 200, 20.0, 200 * 32)
    assert codistilled.by_group == [Reached(0, 300, 30.0, 300 * 32), codistilled.reached]
    assert (baseline.ratio, codistilled.ratio) == (1.0, 0.5)


def test_table_json_and_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(write(tmp_path / name, losses)) for name, losses in (("a", [3.0, 2.0]), ("b", [3.0, 2.6]), ("c", []))]
    found, page = tmp_path / "new" / "found.json", tmp_path / "page" / "page.html"
    command = ["compare", *runs, "--target", "2.5", "--json", str(found), "--output", str(page)]
    assert main(command) == 0
    titles, *rows = capsys.readouterr().out.splitlines()[:4]
    assert "steps to 2.5000" in titles
    assert [row.split()[5:] for row in rows] == [
        ["2.0000", "200", "1.0000", "20.0", "3,200"],
        ["2.6000", "not", "reached", "-", "-", "-"],
        ["-", "not", "reached", "-", "-", "-"],
    ]
    told = json.loads(found.read_text())
    assert told["runs"][0]["reached"] == {"group": 0, "steps": 200, "seconds": 20.0, "examples": 3200}
    assert [(run["reached"], run["ratio"], run["best"]) for run in told["runs"][1:]] == [
        (None, None, 2.6),
        (None, None, None),
    ]
    text = page.read_text()
    assert text.count("<svg") == 1
    assert "a &lt;book&gt;" in text
    assert '<td class="number">not reached</td>' in text


def test_the_figure_alone(tmp_path: Path) -> None:
    run = write(tmp_path / "a", [3.0, 2.0], [3.0, 1.5])
    draw_comparison(compare([run]), tmp_path / "figure.svg")
    text = (tmp_path / "figure.svg").read_text()
    assert text.startswith("<?xml")
    assert text.count("a, group 1") == 3  # in each legend
    assert text.count("1.5000") == 3


def test_bad_input_is_named(tmp_path: Path) -> None:
    run, new = write(tmp_path / "run", [3.0]), write(tmp_path / "new", [])
    clicks = write(tmp_path / "clicks", [0.5], unit="row")
    with pytest.raises(UserError, match="new has no validation loss yet; wait for its first, leave it out, or name a"):
        compare([run, new])
    with pytest.raises(UserError, match="losses are in nats per row or nats per token, which cannot be compared; name"):
        compare([run, clicks])
    with pytest.raises(UserError, match="nowhere holds no metrics of a run; name the run_dir"):
        compare([tmp_path / "nowhere"])
    with pytest.raises(UserError, match=r"page\.pdf is neither a page nor a figure; let it end in \.html or \.svg"):
        draw_comparison(compare([run]), tmp_path / "page.pdf")
    with pytest.raises(UserError, match=r"--output .* cannot be written: .*; choose another file"):
        draw_comparison(compare([run]), metrics_path(run, 0) / "page.svg")
