"""Store of images: data is read as written, and damage is named."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from damaged_store import DAMAGES, make_damaged_store
from hpcdistill.data.images.store import ImageStore, Kind, Pictures, write_images
from hpcdistill.errors import UserError

pytestmark = pytest.mark.alone

KINDS = {
    "arrays": Kind(["cat", "dog", "ölz"], (3, 20, 20), [1.0, 2.0, 3.0], [4.0, 5.0, 6.0]),
    "encoded": Kind(["cat", "dog", "ölz"], (), [1.0, 2.0, 3.0], [4.0, 5.0, 6.0]),
}
both = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def random_images(kind: Kind, count: int, seed: int = 0) -> tuple[Any, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, len(kind.classes), count)
    if kind.shape:
        return random.integers(0, 256, (count, *kind.shape), np.uint8), labels
    return [random.bytes(length) for length in random.integers(0, 5000, count)], labels


def assert_equal(one: Pictures, other: Pictures) -> None:
    assert type(one) is type(other)
    np.testing.assert_array_equal(one, other) if isinstance(one, np.ndarray) else None
    assert list(map(bytes, one)) == list(map(bytes, other))


@both
def test_images_come_back_as_they_were(tmp_path: Path, kind: Kind) -> None:
    (train, labels), (validation, others) = random_images(kind, 300), random_images(kind, 7, seed=1)
    pieces = [("train", train, labels), ("validation", validation, others)]
    assert write_images(tmp_path / "data.h5", pieces, kind, "zoo") == {"train": 300, "validation": 7}
    with ImageStore(tmp_path / "data.h5") as store:
        assert (store.kind, store.source, store.kind.channels) == (kind, "zoo", 3)
        assert (store.size("train"), store.size("validation")) == (300, 7)
        numbers = np.array([299, 0, 41, 41])
        pictures, found = store.read("train", numbers)
        assert_equal(pictures, train[numbers] if kind.shape else [train[number] for number in numbers])
        assert found.dtype == np.int64
        assert found.tolist() == labels[numbers].tolist()
        pictures, found = store.read("validation", np.arange(7))
        assert_equal(pictures, validation)
        assert found.tolist() == others.tolist()


@settings(max_examples=10)  # each waits for the disk
@given(kind=st.sampled_from([*KINDS.values()]), cuts=st.lists(st.integers(0, 50), max_size=4))
def test_a_store_does_not_depend_on_how_its_images_were_cut(
    tmp_path_factory: pytest.TempPathFactory, kind: Kind, cuts: list[int]
) -> None:
    folder, ends = tmp_path_factory.mktemp("cut"), [0, *sorted(cuts), 50]
    pictures, labels = random_images(kind, 50)
    pieces = [("train", pictures[slice(*pair)], labels[slice(*pair)]) for pair in pairwise(ends)]
    write_images(folder / "cut.h5", pieces, kind, "")
    write_images(folder / "whole.h5", [("train", pictures, labels)], kind, "")
    with ImageStore(folder / "cut.h5") as cut, ImageStore(folder / "whole.h5") as whole:
        assert cut.identity == whole.identity
        assert_equal(cut.read("train", np.arange(50))[0], pictures)


@both
@pytest.mark.parametrize("change", ["pictures", "labels", "part", "classes"])
def test_other_images_have_another_identity(tmp_path: Path, kind: Kind, change: str) -> None:
    pictures, labels = random_images(kind, 20)
    others = {"train": (pictures, labels)}
    before = identity(tmp_path, others, kind)
    if change == "pictures":
        others = {"train": (pictures[::-1], labels)}
    elif change == "labels":
        others = {"train": (pictures, (labels + 1) % 3)}
    elif change == "part":
        others = {"validation": (pictures, labels)}
    else:
        kind = replace(kind, classes=["dog", "cat", "ölz"])
    assert identity(tmp_path, others, kind) != before


def test_files_that_are_cut_elsewhere_have_another_identity(tmp_path: Path) -> None:
    labels = np.zeros(2, np.int64)
    one, other = ({"train": (files, labels)} for files in ([b"a", b"bc"], [b"ab", b"c"]))
    assert identity(tmp_path, one, KINDS["encoded"]) != identity(tmp_path, other, KINDS["encoded"])


def identity(folder: Path, parts: dict[str, tuple[Any, np.ndarray]], kind: Kind) -> str:
    write_images(folder / "data.h5", [(part, *content) for part, content in parts.items()], kind, "")
    with ImageStore(folder / "data.h5") as store:
        return store.identity


def test_there_may_be_more_names_than_an_attribute_holds(tmp_path: Path) -> None:
    classes = [f"n{number:08}" for number in range(21_841)]
    write_images(tmp_path / "data.h5", [], Kind(classes, (), [0.0] * 3, [1.0] * 3), "")
    with ImageStore(tmp_path / "data.h5") as store:
        assert store.kind.classes == classes


@both
def test_a_flipped_bit_is_found_when_it_is_read(tmp_path: Path, kind: Kind) -> None:
    path = tmp_path / "data.h5"
    write_images(path, [("train", *random_images(kind, 500))], kind, "")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with ImageStore(path) as store, pytest.raises(UserError, match=r"images of 'train' cannot .* the file is damaged"):
        store.read("train", np.arange(500))


@pytest.mark.parametrize("column", ["label", "end"])
def test_a_flipped_bit_in_a_column_is_found_at_once(tmp_path: Path, column: str) -> None:
    path, kind = tmp_path / "data.h5", KINDS["encoded"]
    write_images(path, [("train", *random_images(kind, 50))], kind, "")
    with h5py.File(path) as file:
        place = file["train"][column].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"labels of 'train' cannot be read .* the file is damaged"):
        ImageStore(path)


@both
@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_out_of_range_is_named(tmp_path: Path, kind: Kind, label: int) -> None:
    pictures, labels = random_images(kind, 20)
    labels[7] = label
    write_images(tmp_path / "data.h5", [("validation", pictures, labels)], kind, "")
    with pytest.raises(UserError, match="a label of 'validation' is not one of 3; prepare the data again"):
        ImageStore(tmp_path / "data.h5")


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_not_a_store_is_refused_with_the_remedy(tmp_path: Path, damage: str) -> None:
    path, kind = tmp_path / "data.h5", KINDS["arrays"]
    make_damaged_store(path, damage, lambda path: write_images(path, [("train", *random_images(kind, 100))], kind, ""))
    remedy = "upgrade hpcdistill or prepare the data again" if damage == "newer" else "hpcdistill prepare images"
    with pytest.raises(UserError, match=remedy):
        ImageStore(path)
