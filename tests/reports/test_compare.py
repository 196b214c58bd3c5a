"""Cost of runs until they reach a loss, from metrics whose answer is known."""

from pathlib import Path

import pytest

from hpcdistill.errors import UserError
from hpcdistill.reports.compare import Reached, compare, draw_comparison
from hpcdistill.storage.run_dir import RunDir
from metrics_files import write_losses

pytestmark = pytest.mark.alone


def test_runs_are_measured_by_the_first_one(tmp_path: Path) -> None:
    plain = write_losses(tmp_path / "plain", [3.0, 2.5, 2.0, 1.9], batch=32)
    taught = write_losses(tmp_path / "taught", [3.0, 2.1, 1.8, 1.7], [2.8, 1.9, 2.0, 1.6])
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


def test_the_figure_alone(tmp_path: Path) -> None:
    run = write_losses(tmp_path / "a", [3.0, 2.0], [3.0, 1.5])
    draw_comparison(compare([run]), tmp_path / "figure.svg")
    text = (tmp_path / "figure.svg").read_text()
    assert text.startswith("<?xml")
    assert text.count("a, group 1") == 3  # in each legend
    assert text.count("1.5000") == 3


def test_bad_input_is_named(tmp_path: Path) -> None:
    run, new = write_losses(tmp_path / "run", [3.0]), write_losses(tmp_path / "new", [])
    clicks = write_losses(tmp_path / "clicks", [0.5], unit="row")
    with pytest.raises(UserError, match="new has no validation loss yet; wait for its first, leave it out, or name a"):
        compare([run, new])
    with pytest.raises(UserError, match="losses are in nats per row or nats per token, which cannot be compared; name"):
        compare([run, clicks])
    with pytest.raises(UserError, match="nowhere holds no metrics of a run; name the run_dir"):
        compare([tmp_path / "nowhere"])
    with pytest.raises(UserError, match=r"page\.pdf is neither a page nor a figure; let it end in \.html or \.svg"):
        draw_comparison(compare([run]), tmp_path / "page.pdf")
    with pytest.raises(UserError, match=r"--output .* cannot be written: .*; choose another file"):
        draw_comparison(compare([run]), RunDir(run).metrics(0) / "page.svg")
