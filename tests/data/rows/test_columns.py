"""Numbers, categories and missing values, in columns of text and of other types."""

import datetime
import decimal
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdistill.data.prepare.split import hash_texts
from hpcdistill.data.rows.chunk import MISSING_WORDS, Chunk
from hpcdistill.data.rows.columns import MISSING, kind_of_type, read_categories, read_numbers
from hpcdistill.errors import UserError

pytestmark = pytest.mark.alone

FAR = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.timezone.utc)


def chunk_of(*columns: Iterable[object], type_: pyarrow.DataType | None = None) -> Chunk:
    arrays = [pyarrow.array(column, type_) for column in columns]
    rows = np.arange(len(arrays[0]))
    return Chunk(arrays, rows, Path("t.csv"), rows + 2)


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        *[("1", 1), ("-1.5e3", -1500), (".5", 0.5), ("5.", 5), (" +7 ", 7), ("1e-120", 1e-120), ("1.5e300", 1.5e300)],
        *[(word, np.nan) for word in [*MISSING_WORDS, " NA ", "nAn", "NONE", ".", "-", "n/A"]],
    ],
)
def test_numbers_and_missing_ones_are_told_from_the_odd(cell: str, number: float) -> None:
    chunk = chunk_of([cell, "2", "odd"])
    read = read_numbers(chunk, chunk.columns[0])
    np.testing.assert_array_equal(read.values, [number, 2, np.nan])
    assert (read.seen.odd, read.seen.odd_one) == (1, "'odd' (t.csv line 4)")
    assert read.seen.numbers == 2 - np.isnan(number)


@pytest.mark.parametrize("cell", ["1_0", "0x1", "١", "1,5", "1 000", "$1", "5%", "word", "1e", "2020-01-01", "--1"])
def test_what_is_no_number_is_odd_and_missing(cell: str) -> None:
    chunk = chunk_of([cell, "2"])
    numbers, categories = read_numbers(chunk, chunk.columns[0]), read_categories(chunk, chunk.columns[0])
    assert np.isnan(numbers.values).tolist() == [True, False]
    assert (numbers.seen.odd, categories.seen.odd) == (1, 1)
    assert numbers.seen.odd_one == categories.seen.odd_one == f"{cell!r} (t.csv line 2)"


@pytest.mark.parametrize("cell", ["inf", "-inf", "Infinity", "+INF", "1e999", "-1e400"])
@pytest.mark.parametrize("other", ["2", "odd"])
def test_infinite_ones_are_counted_and_missing(cell: str, other: str) -> None:
    chunk = chunk_of([cell, other])
    read = read_numbers(chunk, chunk.columns[0])
    assert np.isnan(read.values[0])
    assert read.seen.infinite == 1


@given(
    cells=st.lists(st.one_of(st.floats().map(repr), st.sampled_from(["", "NA", "x", "1,5", "-", " 3", "-Infinity"])))
)
def test_a_column_is_judged_alike_as_numbers_and_as_categories(cells: list[str]) -> None:
    chunk = chunk_of(cells, type_=pyarrow.string())
    numbers, categories = (read(chunk, chunk.columns[0]).seen for read in (read_numbers, read_categories))
    for name in ("numbers", "infinite", "odd", "odd_one"):
        assert getattr(numbers, name) == getattr(categories, name)


@pytest.mark.parametrize(
    ("values", "type_", "numbers"),
    [
        ([1, None], pyarrow.int8(), [1, np.nan]),
        ([2**63, None], pyarrow.uint64(), [2.0**63, np.nan]),
        ([1e-120, np.inf], pyarrow.float64(), [1e-120, np.nan]),
        ([np.float16(0.5), None], pyarrow.float16(), [0.5, np.nan]),
        ([decimal.Decimal("1.25"), None], pyarrow.decimal128(9, 2), [1.25, np.nan]),
        ([1_500_000_001, None], pyarrow.timestamp("ns"), [1.500000001, np.nan]),
        ([FAR], pyarrow.timestamp("s", "UTC"), [253402300799]),
        ([2**60], pyarrow.timestamp("s"), [2.0**60]),
        ([90, None], pyarrow.duration("ns"), [9e-8, np.nan]),
        ([2, None], pyarrow.date32(), [172800, np.nan]),
        ([86_400_000], pyarrow.date64(), [86400]),
        ([2], pyarrow.time32("ms"), [2e-3]),
        ([2], pyarrow.time64("us"), [2e-6]),
        ([None], pyarrow.null(), [np.nan]),
    ],
)
def test_typed_numbers_and_times_are_numbers(
    values: list[object], type_: pyarrow.DataType, numbers: list[float]
) -> None:
    chunk = chunk_of(values, type_=type_)
    assert kind_of_type("x", type_, "t.parquet") in ("dense", None)
    np.testing.assert_allclose(read_numbers(chunk, chunk.columns[0]).values, numbers)
    codes, hashes, _ = read_categories(chunk, chunk.columns[0])
    assert (hashes[codes] == MISSING).tolist() == [value is None for value in values]


@pytest.mark.parametrize(
    "type_",
    [pyarrow.bool_(), pyarrow.string(), pyarrow.large_string(), pyarrow.binary(), pyarrow.binary(2)]
    + [pyarrow.dictionary(pyarrow.int8(), value) for value in (pyarrow.string(), pyarrow.int64())],
)
def test_typed_words_are_categories(type_: pyarrow.DataType) -> None:
    assert kind_of_type("x", type_, "t.parquet") == "categorical"
    values = [True, False] if type_ == pyarrow.bool_() else [b"10", b"11"] if "binary" in str(type_) else ["10", "11"]
    if "int64" in str(type_):
        values = [10, 11]
    chunk = chunk_of([*values, None, values[0]], type_=type_)
    codes, hashes, _ = read_categories(chunk, chunk.columns[0])
    first, second, missing, again = hashes[codes].tolist()
    assert first == again != second
    assert missing == MISSING
    np.testing.assert_array_equal(np.isnan(read_numbers(chunk, chunk.columns[0]).values), [False, False, True, False])


@pytest.mark.parametrize(
    "type_", [pyarrow.list_(pyarrow.int8()), pyarrow.struct({"a": pyarrow.int8()}), pyarrow.month_day_nano_interval()]
)
def test_what_is_neither_is_named_with_the_remedy(type_: pyarrow.DataType) -> None:
    with pytest.raises(UserError, match=r"column 'x' of t\.parquet has the type .*--drop 'x'"):
        kind_of_type("x", type_, "t.parquet")


def test_the_same_text_is_the_same_category_however_it_is_stored() -> None:
    chunk = chunk_of([" 5", "5", "a", "NA", None])
    text, numbers = chunk.columns[0], pyarrow.array([5])
    codes, hashes, _ = read_categories(chunk, text)
    five, same, other, *missing = hashes[codes].tolist()
    assert five == same != other
    assert missing == [MISSING, MISSING]
    assert read_categories(chunk, numbers).hashes[0] == five


@pytest.mark.parametrize(
    ("cell", "is_formatted"),
    [
        *[(cell, True) for cell in ("1,234", "1 234,5", "$3.50", "3,14", "€ 5", "5 €", "12%", "(1,200)", "5 USD")],
        *[(cell, True) for cell in ("2020-01-31", "31.1.2020", "1/31/20 10:00", "2020-01-31T10:00:00Z", "10:15")],
        *[(cell, False) for cell in ("1", "word", "12-B", "A1", "1a2b3c4d", "10-0-0-1-5", "x-1")],
    ],
)
def test_numbers_in_another_notation_are_noticed(cell: str, is_formatted: bool) -> None:
    chunk = chunk_of([cell])
    assert read_categories(chunk, chunk.columns[0]).seen.formatted == is_formatted


@given(texts=st.lists(st.text(max_size=20) | st.text(st.sampled_from("ab"), min_size=60, max_size=80)))
def test_texts_have_the_same_hash_only_if_they_are_the_same(texts: list[str]) -> None:
    hashes = hash_texts(pyarrow.array([*texts, "x"], pyarrow.string()).slice(1))
    assert (hashes >= 0).all()
    for text, value in zip([*texts, "x"][1:], hashes.tolist(), strict=True):
        assert hash_texts(pyarrow.array([text]))[0] == value
    assert len(set(hashes.tolist())) == len({*texts[1:], *(["x"] if texts else [])})
