"""What was saved comes back exactly, or is refused."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpcdistill.errors import UserError
from hpcdistill.state_file import PART_NBYTES, load_state, save_state

STATE = {
    "step": 7,
    "rate": 0.1,
    "model": {"a.weight": torch.randn(3, 5), "b": torch.randn(4).bfloat16(), "n": torch.tensor(3)},
    "groups": [{"lr": 1e-3, "betas": [0.9, 0.999], "on": None}],
    "empty": torch.zeros(0, 3),
    "large": torch.arange(PART_NBYTES + 1, dtype=torch.uint8),
}


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
    save_state(tmp_path / "x.h5", "test", STATE)
    assert_same(load_state(tmp_path / "x.h5", "test"), STATE)


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found(tmp_path_factory: pytest.TempPathFactory, place: float, bit: int) -> None:
    path = tmp_path_factory.mktemp("flip") / "x.h5"
    save_state(path, "test", {key: STATE[key] for key in ("step", "model")})
    content = bytearray(path.read_bytes())
    content[math.floor(place * len(content))] ^= 1 << bit
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged|not a test"):
        load_state(path, "test")


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    save_state(tmp_path / "x.h5", "test", STATE)
    with pytest.raises(UserError, match=r"x\.h5 is not a checkpoint of hpcdistill"):
        load_state(tmp_path / "x.h5", "checkpoint")
    with pytest.raises(UserError, match=r"y\.h5 cannot be read: .*No such file"):
        load_state(tmp_path / "y.h5", "test")


def test_an_interrupted_save_leaves_the_previous_one_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    save_state(path, "test", {"step": 1})
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_state(path, "test", {"fine": torch.zeros(3), "unfit": object()})
    assert load_state(path, "test") == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]
