"""Arithmetic and options of the benchmarks and studies."""

import sys
from pathlib import Path

import pytest

from repository import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

from hpcdistill.storage.metrics import GroupMetrics
from measure import make_parser
from study import T95, Run, _jobs, add_seeds, format_mean, interval, markdown, steps_to

pytestmark = pytest.mark.alone


def test_no_benchmark_takes_an_abbreviated_option(capsys: pytest.CaptureFixture[str]) -> None:
    parser = make_parser("")
    parser.add_argument("--rounds")
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(["--round=3"])
    assert "unrecognized arguments: --round=3" in capsys.readouterr().err
    makers = [path.name for path in (ROOT / "benchmarks").glob("*.py") if "ArgumentParser(" in path.read_text()]
    assert makers == ["measure.py"]


def test_steps_to_a_loss_lie_on_the_line_between_validations() -> None:
    losses = {100: 4.0, 200: 2.0, 300: 2.5, 400: 1.0}
    records = [{"step": step, "validation_loss": loss} for step, loss in losses.items()]
    group = GroupMetrics(Path(), 0, {}, records)
    assert steps_to(group, 5.0) == 100
    assert steps_to(group, 2.5) == 175
    assert steps_to(group, 2.0) == 200
    assert steps_to(group, 1.75) == 350
    assert steps_to(group, 0.5) == 400  # never: as if it were at the end


def test_the_interval_of_a_mean_is_student_s() -> None:
    """The deviation of 1, 2, 3 is 1, and t for two degrees of freedom is 4.30."""
    assert format_mean([1.0, 2.0, 3.0], 2) == f"2.00 ± {4.30 / 3**0.5:.2f}"
    assert format_mean([1.25]) == "1.250"


@pytest.mark.parametrize("seeds", [1, 11])
def test_a_number_of_seeds_without_an_interval_is_refused(seeds: int, capsys: pytest.CaptureFixture[str]) -> None:
    parser = make_parser("")
    add_seeds(parser)
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args([f"--seeds={seeds}"])
    assert f"invalid choice: {seeds}" in capsys.readouterr().err
    assert all(interval([1.0, *[2.0] * (seeds - 1)])[1] > 0 for seeds in range(2, len(T95) + 2))


@pytest.mark.parametrize("rows", [[], [("a", 1)]])
def test_tables_have_a_line_for_each_row(rows: list[tuple[str, int]]) -> None:
    assert markdown(("x", "y"), rows).splitlines() == ["| x | y |", "| --- | --- |", *["| a | 1 |"] * len(rows)]


def test_jobs_have_runs_of_equally_many_ranks() -> None:
    runs = [Run(f"{number}", "language", ranks=ranks) for number, ranks in enumerate([1, 1, 1, 2, 1])]
    assert [[run.name for run in job] for job in _jobs(runs, 2)] == [["0", "1"], ["2", "4"], ["3"]]
