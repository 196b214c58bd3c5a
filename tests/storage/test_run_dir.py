"""Names of the files of a run, and which of them exist."""

from pathlib import Path

import pytest

from hpcdistill.errors import UserError
from hpcdistill.storage.run_dir import RunDir

pytestmark = pytest.mark.alone


def make(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_checkpoints_are_found_by_group_and_step_newest_first(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    make(*(run.checkpoint(group, step) for group, step in ((1, 9), (1, 100), (10, 500))), run.best_checkpoint(2))
    assert run.find_checkpoints(1) == {100: run.checkpoint(1, 100), 9: run.checkpoint(1, 9)}
    assert list(run.find_checkpoints(1)) == [100, 9]
    assert run.find_groups() == [1, 2, 10]


def test_metrics_are_found_by_group(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    make(
        run.metrics(10), run.metrics(2), tmp_path / "metrics-gx.jsonl", tmp_path / ".metrics-g1.jsonl.0123456789abcdef"
    )
    assert list(run.find_metrics().items()) == [(2, run.metrics(2)), (10, run.metrics(10))]


def test_no_two_files_have_one_name(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    paths = [run.report, run.exchange]
    for group in (1, 11):
        paths += [run.metrics(group), run.tensorboard(group), run.owner(group), run.best_checkpoint(group)]
        paths += [run.checkpoint(group, step) for step in (1, 11)]
    assert len(set(paths)) == len(paths)


def test_a_new_run_is_refused_where_there_are_checkpoints(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    make(run.checkpoint(1, 5))
    run.require_no_checkpoints(0)
    for group in (None, 1):
        with pytest.raises(UserError, match=r"holds a run already \(g1-step0000000005\.h5\); add --resume"):
            run.require_no_checkpoints(group)
