"""Restart files: the newest is taken, damage falls back, and a predecessor is always there."""

from pathlib import Path

import pytest

from hpcdistill.checkpoint import KIND, Checkpoints
from hpcdistill.errors import UserError
from hpcdistill.state_file import load_state

STATE = {"step": 7}


def checkpoints(folder: Path, **owner: object) -> Checkpoints:
    return Checkpoints(folder, group=0, keep=2, owner=owner or {"tensors": ["a.weight [3, 5] float32"]})


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    checkpoints(tmp_path).save(7, STATE, is_best=False)
    assert checkpoints(tmp_path).newest(strict=True) == STATE


def test_the_newest_is_taken_and_the_oldest_removed(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        checkpoints(tmp_path).save(step, {"step": step}, is_best=False)
    assert [path.name for path in checkpoints(tmp_path).paths()] == ["g0-step0000000100.h5", "g0-step0000000010.h5"]
    assert checkpoints(tmp_path).newest(strict=False) == {"step": 100}


def test_the_best_stays_until_there_is_a_better_one(tmp_path: Path) -> None:
    for step, is_best in ((1, True), (2, True), (3, False), (4, False)):
        checkpoints(tmp_path).save(step, {"step": step}, is_best)
    assert load_state(tmp_path / "g0-best.h5", KIND)["state"] == {"step": 2}
    assert len(list(tmp_path.iterdir())) == 3
    assert checkpoints(tmp_path).newest(strict=True) == {"step": 4}


def test_another_groups_checkpoints_are_not_taken(tmp_path: Path) -> None:
    Checkpoints(tmp_path, group=10, keep=2, owner={}).save(5, STATE, is_best=False)
    assert checkpoints(tmp_path).newest(strict=True) is None


def test_damage_falls_back_with_a_word_and_strict_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (1, 2):
        checkpoints(tmp_path).save(step, {"step": step}, is_best=False)
    newest, oldest = checkpoints(tmp_path).paths()
    newest.write_bytes(newest.read_bytes()[:-100])
    assert checkpoints(tmp_path).newest(strict=False) == {"step": 1}
    assert f"{newest} is damaged" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"--resume=strict.*damaged"):
        checkpoints(tmp_path).newest(strict=True)
    oldest.write_bytes(b"not HDF5")
    with pytest.raises(UserError, match="none of the 2 checkpoints of group 0"):
        checkpoints(tmp_path).newest(strict=False)


def test_a_foreign_checkpoint_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    checkpoints(tmp_path).save(1, STATE, is_best=False)
    other = checkpoints(tmp_path, tensors=["a.weight [3, 6] float32"])
    with pytest.raises(
        UserError, match=r"tensors has a\.weight \[3, 5\] float32 there, a\.weight \[3, 6\] float32 here"
    ):
        other.newest(strict=True)
