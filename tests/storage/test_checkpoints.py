"""Checkpoints: the newest usable one is taken, and a predecessor always remains."""

import errno
import os
from pathlib import Path

import pytest

from hpcdistill.errors import UserError
from hpcdistill.storage.checkpoints import KIND, Checkpoints
from hpcdistill.storage.run_dir import RunDir
from hpcdistill.storage.state_file import State, load_state, save_state

pytestmark = pytest.mark.alone

STATE = {"step": 7}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


def checkpoints(run: Path, **owner: object) -> Checkpoints:
    return Checkpoints(RunDir(run), group=0, keep=2, owner=owner or {"tensors": ["a.weight [3, 5] float32"]})


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    checkpoints(tmp_path).save(7, STATE, is_best=False)
    assert checkpoints(tmp_path).newest(strict=True) == STATE


def test_the_newest_is_taken_and_the_oldest_removed(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        checkpoints(tmp_path).save(step, {"step": step}, is_best=False)
    assert [path.name for path in RunDir(tmp_path).find_checkpoints(0).values()] == [
        "g0-step0000000100.h5",
        "g0-step0000000010.h5",
    ]
    assert checkpoints(tmp_path).newest(strict=False) == {"step": 100}


def test_the_best_stays_until_there_is_a_better_one(tmp_path: Path, folder: Path) -> None:
    for step, is_best in ((1, True), (2, True), (3, False), (4, False)):
        checkpoints(tmp_path).save(step, {"step": step}, is_best)
    assert load_state(folder / "g0-best.h5", KIND)["state"] == {"step": 2}
    assert len(list(folder.iterdir())) == 3
    assert checkpoints(tmp_path).newest(strict=True) == {"step": 4}


def test_another_groups_checkpoints_are_not_taken(tmp_path: Path) -> None:
    Checkpoints(RunDir(tmp_path), group=10, keep=2, owner={}).save(5, STATE, is_best=False)
    assert checkpoints(tmp_path).newest(strict=True) is None


def test_damage_falls_back_with_a_word_and_strict_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (1, 2):
        checkpoints(tmp_path).save(step, {"step": step}, is_best=False)
    newest, oldest = RunDir(tmp_path).find_checkpoints(0).values()
    newest.write_bytes(newest.read_bytes()[:-100])
    assert checkpoints(tmp_path).newest(strict=False) == {"step": 1}
    assert f"{newest} is damaged" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"--resume=strict.*damaged"):
        checkpoints(tmp_path).newest(strict=True)
    oldest.write_bytes(b"not HDF5")
    with pytest.raises(UserError, match="none of the 2 checkpoints of group 0"):
        checkpoints(tmp_path).newest(strict=False)


def steps(run: Path) -> list[int]:
    return list(RunDir(run).find_checkpoints(0))


def damage(run: Path, step: int) -> None:
    path = RunDir(run).checkpoint(0, step)
    path.write_bytes(path.read_bytes()[:-100])


def test_damaged_checkpoints_do_not_count(tmp_path: Path) -> None:
    for step in (500, 1000):
        checkpoints(tmp_path).save(step, {"step": step}, is_best=False)
    damage(tmp_path, 1000)
    run = checkpoints(tmp_path)
    run.save(1500, {"step": 1500}, is_best=False)
    assert steps(tmp_path) == [1500, 1000, 500]
    damage(tmp_path, 1500)
    assert checkpoints(tmp_path).newest(strict=False) == {"step": 500}
    run = checkpoints(tmp_path)
    for step in (1600, 1700):
        run.save(step, {"step": step}, is_best=False)
    assert steps(tmp_path) == [1700, 1600]


def test_what_lies_ahead_of_a_run_that_went_on_from_an_earlier_step_is_set_aside(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (500, 1000):
        checkpoints(tmp_path).save(step, {"step": step}, is_best=False)
    damage(tmp_path, 1000)
    content = (folder / "g0-step0000001000.h5").read_bytes()
    run = checkpoints(tmp_path)
    assert run.newest(strict=False) == {"step": 500}
    assert steps(tmp_path) == [1000, 500]  # nothing is moved before there is something newer
    run.save(600, {"step": 600}, is_best=False)
    assert steps(tmp_path) == [600, 500]
    assert (folder / "g0-step0000001000.h5.aside").read_bytes() == content
    assert "g0-step0000001000.h5 is of a later step than the run" in capsys.readouterr().err
    run.save(700, {"step": 700}, is_best=False)
    damage(tmp_path, 700)
    assert checkpoints(tmp_path).newest(strict=False) == {"step": 600}


def no_links(self: Path, target: Path) -> None:
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(self))


def test_without_hard_links_the_best_is_a_copy(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "hardlink_to", no_links)
    for step, is_best in ((1, True), (2, False), (3, True), (4, False), (5, False)):
        checkpoints(tmp_path).save(step, {"step": step}, is_best)
    assert load_state(folder / "g0-best.h5", KIND)["state"] == {"step": 3}
    assert steps(tmp_path) == [5, 4]
    assert len(list(folder.iterdir())) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state": STATE}, "holds no state of a run"),
        ({"owner": {}, "state": [7]}, "holds no state of a run"),
        ({"owner": {}, "state": {"weight": 1}}, "is of step None, which is none"),
        ({"owner": {}, "state": {"step": -5}}, "is of step -5, which is none"),
        ({"owner": {}, "state": {"step": "7"}}, "is of step '7', which is none"),
    ],
)
def test_a_checksum_is_not_validity(content: State, message: str, tmp_path: Path, folder: Path) -> None:
    checkpoints(tmp_path).save(7, STATE, is_best=False)
    save_state(folder / "g0-step0000000009.h5", KIND, content)
    with pytest.raises(UserError, match=f"g0-step0000000009.h5 {message}"):
        checkpoints(tmp_path).newest(strict=True)
    assert checkpoints(tmp_path).newest(strict=False) == STATE


def test_what_an_older_version_did_not_tell_is_taken_to_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints(tmp_path, seed=0).save(7, STATE, is_best=False)
    assert checkpoints(tmp_path, seed=0, identity="ab", batch=8).newest(strict=True) == STATE
    assert "of an older version and does not tell batch, identity; make sure that" in capsys.readouterr().err
    with pytest.raises(UserError, match="is of another run: seed = 0 there, 1 here; give"):
        checkpoints(tmp_path, seed=1, identity="ab", batch=8).newest(strict=False)


def test_all_differences_are_named(tmp_path: Path) -> None:
    checkpoints(tmp_path, seed=0, batch=8).save(7, STATE, is_best=False)
    with pytest.raises(UserError, match="is of another run: seed = 0 there, 1 here, batch = 8 there, 4 here; give"):
        checkpoints(tmp_path, seed=1, batch=4).newest(strict=False)


def test_a_foreign_checkpoint_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    checkpoints(tmp_path).save(1, STATE, is_best=False)
    other = checkpoints(tmp_path, tensors=["a.weight [3, 6] float32"])
    with pytest.raises(
        UserError, match=r"tensors has a\.weight \[3, 5\] float32 there, a\.weight \[3, 6\] float32 here"
    ):
        other.newest(strict=True)
