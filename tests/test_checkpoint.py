"""Restart files: they come back exactly, damage is found, and a predecessor is always there."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpcdistill.checkpoint import Checkpoints, load
from hpcdistill.errors import UserError

STATE = {
    "step": 7,
    "rate": 0.1,
    "model": {"a.weight": torch.randn(3, 5), "b": torch.randn(4).bfloat16(), "n": torch.tensor(3)},
    "groups": [{"lr": 1e-3, "betas": [0.9, 0.999], "on": None}],
}


def checkpoints(folder: Path, **owner: object) -> Checkpoints:
    return Checkpoints(folder, group=0, keep=2, owner=owner or {"tensors": ["a.weight [3, 5] float32"]})


def assert_same(left: object, right: object) -> None:
    if isinstance(left, dict):
        assert isinstance(right, dict)
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, torch.Tensor):
        assert isinstance(right, torch.Tensor)
        assert left.dtype == right.dtype
        assert torch.equal(left, right)
    else:
        assert left == right


def test_what_was_saved_comes_back_exactly(tmp_path: Path) -> None:
    checkpoints(tmp_path).save(7, STATE)
    assert_same(checkpoints(tmp_path).newest(strict=True), STATE)


def test_the_newest_is_taken_and_the_oldest_removed(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        checkpoints(tmp_path).save(step, {"step": step})
    assert [path.name for path in checkpoints(tmp_path).paths()] == ["g0-step0000000100.h5", "g0-step0000000010.h5"]
    assert checkpoints(tmp_path).newest(strict=False) == {"step": 100}


def test_another_groups_checkpoints_are_not_taken(tmp_path: Path) -> None:
    Checkpoints(tmp_path, group=10, keep=2, owner={}).save(5, STATE)
    assert checkpoints(tmp_path).newest(strict=True) is None


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found(tmp_path_factory: pytest.TempPathFactory, place: float, bit: int) -> None:
    folder = tmp_path_factory.mktemp("flip")
    checkpoints(folder).save(1, STATE)
    (path,) = checkpoints(folder).paths()
    content = bytearray(path.read_bytes())
    content[math.floor(place * len(content))] ^= 1 << bit
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged|not a checkpoint"):
        load(path)


def test_damage_falls_back_with_a_word_and_strict_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (1, 2):
        checkpoints(tmp_path).save(step, {"step": step})
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
    checkpoints(tmp_path).save(1, STATE)
    other = checkpoints(tmp_path, tensors=["a.weight [3, 6] float32"])
    with pytest.raises(
        UserError, match=r"tensors has a\.weight \[3, 5\] float32 there, a\.weight \[3, 6\] float32 here"
    ):
        other.newest(strict=True)


def test_an_interrupted_save_leaves_the_previous_one_and_no_litter(tmp_path: Path) -> None:
    checkpoints(tmp_path).save(1, {"step": 1})
    with pytest.raises(TypeError, match="not JSON serializable"):
        checkpoints(tmp_path).save(2, {"fine": torch.zeros(3), "unfit": object()})
    assert checkpoints(tmp_path).newest(strict=True) == {"step": 1}
    assert len(list(tmp_path.iterdir())) == 1
