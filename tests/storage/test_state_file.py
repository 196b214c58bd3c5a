"""State files: the saved state comes back exactly, or the file is refused."""

import hashlib
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpcdistill.errors import UserError
from hpcdistill.storage import state_file
from hpcdistill.storage.state_file import PART_NBYTES, USER_BLOCK_NBYTES, load_state, save_state

pytestmark = pytest.mark.alone

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


# A right checksum is not enough: anyone can compute it


def forge(path: Path, change: Callable[[h5py.File], None]) -> None:
    """Rewrite a state file with changes and a right checksum."""
    with h5py.File(path, "r+") as file:
        change(file)
    stamp = state_file._stamp(path, "test")
    with path.open("r+b") as raw:
        raw.write(stamp)


def from_another_file(file: h5py.File) -> None:
    file["other"] = h5py.ExternalLink("/etc/hostname", "x")


def by_another_name(file: h5py.File) -> None:
    file["other"] = h5py.SoftLink("/step")


def from_foreign_bytes(file: h5py.File) -> None:
    file.create_dataset("other", (5,), np.uint8, external=[("/etc/hostname", 0, 5)])


def from_virtual_parts(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((5,), np.uint8)
    layout[:] = h5py.VirtualSource("/etc/hostname", "x", (5,))
    file.create_virtual_dataset("other", layout)


def without_bytes(file: h5py.File) -> None:
    file.create_dataset("other", (1 << 50,), np.uint8)


def compressed(file: h5py.File) -> None:
    file.create_dataset("other", (1 << 24,), np.uint8, compression="gzip", data=np.zeros(1 << 24, np.uint8))


def of_another_type(file: h5py.File) -> None:
    file["other"] = np.arange(3)


def circular(file: h5py.File) -> None:
    file["other"] = file["/"]


def a_type(file: h5py.File) -> None:
    file["other"] = np.dtype(np.int64)


def attribute(name: str, value: Any) -> Callable[[h5py.File], None]:
    return lambda file: file["model/a.weight"].attrs.__setitem__(name, value)


FORGERIES = [
    (from_another_file, "other is a link to somewhere else"),
    (by_another_name, "other is a link to somewhere else"),
    (from_foreign_bytes, "the content of /other is in other files"),
    (from_virtual_parts, "the content of /other is in other files"),
    (without_bytes, f"/other has 0 bytes instead of {1 << 50}"),
    (compressed, "the chunks of /other are compressed"),
    (of_another_type, "/other is not a sequence of bytes"),
    (circular, "other is no group and no dataset of its own"),
    (a_type, "other is no group and no dataset of its own"),
    (attribute("dtype", "load"), r"has 60 bytes, not those of a 'load' tensor \[3, 5\]"),
    (attribute("shape", [1 << 40]), r"has 60 bytes, not those of a 'float32' tensor \[1099511627776\]"),
    (attribute("shape", [-3, -5]), r"has 60 bytes, not those of a 'float32' tensor \[-3, -5\]"),
    (attribute("shape", "wide"), "invalid literal"),
    (attribute("dtype", [1.0, 2.0]), "ambiguous"),
    (lambda file: file["model/a.weight"].attrs.pop("dtype"), "dtype"),
    (lambda file: file["model/a.weight"].attrs.pop("shape"), "shape"),
    (lambda file: file["step"].write_direct(np.frombuffer(b"}", np.uint8)), "Expecting value"),
]


@pytest.mark.parametrize(("change", "reason"), FORGERIES)
def test_a_right_checksum_is_not_enough(tmp_path: Path, change: Callable[[h5py.File], None], reason: str) -> None:
    save_state(tmp_path / "x.h5", "test", STATE)
    forge(tmp_path / "x.h5", lambda file: None)
    assert_same(load_state(tmp_path / "x.h5", "test"), STATE)
    forge(tmp_path / "x.h5", change)
    with pytest.raises(UserError, match=f"x.h5 was not made by hpcdistill, though its checksum is right: .*{reason}"):
        load_state(tmp_path / "x.h5", "test")


def test_a_file_larger_than_it_says_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    save_state(path, "test", {"step": 1})
    size = path.stat().st_size
    with pytest.raises(UserError, match=f"has {size} bytes, where 99 are the most expected"):
        load_state(path, "test", most=99)
    os.truncate(path, 1 << 42)  # sparse: reading it would take an hour
    with pytest.raises(UserError, match=f"does not have the {1 << 42} bytes that it was written with"):
        load_state(path, "test")


def test_a_file_of_a_newer_format_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    save_state(path, "test", {"step": 1})
    path.write_bytes(path.read_bytes().replace(b"hpcdistill test 2 ", b"hpcdistill test 3 "))
    with pytest.raises(UserError, match=r"its format is 3, the newest known here is 2; upgrade hpcdistill"):
        load_state(path, "test")


def test_a_file_of_the_first_format_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w", userblock_size=USER_BLOCK_NBYTES) as file:
        state_file._write(file, STATE)
    content = path.read_bytes()[USER_BLOCK_NBYTES:]
    digest = hashlib.blake2b(content, digest_size=32).hexdigest()
    path.write_bytes(f"hpcdistill test 1 blake2b {digest}\n".encode().ljust(USER_BLOCK_NBYTES, b"\0") + content)
    assert_same(load_state(path, "test"), STATE)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.h5")
    with pytest.raises(UserError, match=r"x\.h5 is no regular file"):
        load_state(tmp_path / "x.h5", "test")
