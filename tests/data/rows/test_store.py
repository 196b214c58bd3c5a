"""Store of rows: data is read as written, and damage is named."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from damaged_store import DAMAGES, make_damaged_store
from hpcdistill.data.rows.store import Fields, Rows, RowStore, write_rows
from hpcdistill.errors import UserError

pytestmark = pytest.mark.alone

FIELDS = Fields(["weight", "height"], {"colour": 7, "shape": 300, "place": 2**31 - 1})


def random_rows(count: int, seed: int = 0) -> Rows:
    random = np.random.default_rng(seed)
    ids = random.integers(0, list(FIELDS.categorical.values()), (count, 3))
    return Rows(
        random.standard_normal((count, 2)).astype(np.float32),
        ids.astype(np.int32),
        random.integers(0, 2, count, np.uint8),
    )


def assert_equal(one: Rows, other: Rows) -> None:
    for name in Rows._fields:
        assert getattr(one, name).dtype == getattr(other, name).dtype
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    train, validation = random_rows(5000), random_rows(70, seed=1)
    sizes = write_rows(tmp_path / "data.h5", [("train", train), ("validation", validation)], FIELDS, "dice")
    assert sizes == {"train": 5000, "validation": 70}
    with RowStore(tmp_path / "data.h5") as store:
        assert_equal(store.read("train", 0, 5000), train)
        assert_equal(store.read("train", 1000, 99), train.at(slice(1000, 1099)))
        assert_equal(store.read("validation", 60, 99), validation.at(slice(60, 70)))
        assert (store.fields, store.source, store.size("train")) == (FIELDS, "dice", 5000)
        assert np.isnan(store.bayes_log_loss("train"))


@settings(max_examples=10)  # each waits for the disk
@given(cuts=st.lists(st.integers(0, 100), max_size=4))
def test_a_store_does_not_depend_on_how_its_rows_were_cut(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int]
) -> None:
    folder, rows, ends = tmp_path_factory.mktemp("cut"), random_rows(100), [0, *sorted(cuts), 100]
    pieces = [("train", rows.at(slice(*pair))) for pair in pairwise(ends)]
    write_rows(folder / "cut.h5", pieces, FIELDS, "")
    write_rows(folder / "whole.h5", [("train", rows)], FIELDS, "")
    with RowStore(folder / "cut.h5") as cut, RowStore(folder / "whole.h5") as whole:
        assert cut.identity == whole.identity
        assert_equal(cut.read("train", 0, 100), rows)


@pytest.mark.parametrize("change", ["dense", "categorical", "label", "part", "fields"])
def test_other_rows_have_another_identity(tmp_path: Path, change: str) -> None:
    rows, part, fields = random_rows(50), "train", FIELDS
    write_rows(tmp_path / "one.h5", [(part, rows)], fields, "")
    if change == "part":
        part = "validation"
    elif change == "fields":
        fields = Fields(["height", "weight"], FIELDS.categorical)
    else:
        getattr(rows, change)[7] = (0, 1)[int(np.all(getattr(rows, change)[7] == 0))]
    write_rows(tmp_path / "other.h5", [(part, rows)], fields, "")
    with RowStore(tmp_path / "one.h5") as one, RowStore(tmp_path / "other.h5") as other:
        assert one.identity != other.identity


def test_a_flipped_bit_is_found_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "data.h5"
    write_rows(path, [("train", random_rows(50_000))], FIELDS, "")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with RowStore(path) as store, pytest.raises(UserError, match="the file is damaged"):
        store.read("train", 0, 50_000)


@pytest.mark.parametrize(("column", "value"), [("categorical", 7), ("categorical", -1), ("label", 2)])
def test_what_is_out_of_range_is_named(tmp_path: Path, column: str, value: int) -> None:
    rows = random_rows(100)
    getattr(rows, column)[42] = value
    write_rows(tmp_path / "data.h5", [("train", rows)], FIELDS, "")
    with RowStore(tmp_path / "data.h5") as store, pytest.raises(UserError, match="rows 40 to 60 of 'train' hold an id"):
        store.read("train", 40, 20)


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_not_a_store_is_refused_with_the_remedy(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "data.h5"
    make_damaged_store(path, damage, lambda path: write_rows(path, [("train", random_rows(10_000))], FIELDS, ""))
    remedy = "upgrade hpcdistill or prepare the data again" if damage == "newer" else "hpcdistill prepare criteo"
    with pytest.raises(UserError, match=remedy):
        RowStore(path)
