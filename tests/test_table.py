"""Tables: what is a number, what a category, and which label is 1."""

import csv
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from peak_memory import peak_of

from hpcdistill.cli import main
from hpcdistill.data import lines, vocabulary
from hpcdistill.data.hashing import in_validation
from hpcdistill.data.lines import Block
from hpcdistill.data.rows import Fields, RowStore
from hpcdistill.data.table import Columns, parse_lines, prepare_table
from hpcdistill.errors import UserError

NAMES = ["age", "town", "pay", "constant", "nothing"]


def table(count: int) -> list[list[Any]]:
    """Rows as in the census data: numbers, words, both with gaps, and a label of two words."""
    random = np.random.default_rng(0)
    return [
        [
            int(random.integers(17, 90)) if random.random() < 0.9 else "",
            random.choice(["Bern", "St. Gallen, SG", 'the "city"', "NA", ""]),
            ">50K" if random.random() < 0.3 else "<=50K",
            "1e3",
            "",
        ]
        for _ in range(count)
    ]


def write(path: Path, rows: list[list[Any]], end: str = "\n") -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator=end).writerows([NAMES, *rows])
    return path


@pytest.mark.launch
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_columns_become_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", 2000)
    rows = table(500)
    only = int(np.flatnonzero(in_validation(np.arange(1, 501)))[0])
    rows[only][1] = "Atlantis"  # seen in validation only
    prepare_table(write(tmp_path / "a.csv", rows, end), tmp_path / "data.h5", "pay")
    check(tmp_path / "data.h5", rows, in_validation(np.arange(1, 501)), only)


def check(path: Path, rows: list[list[Any]], chosen: np.ndarray, only: int) -> None:
    with RowStore(path) as store:
        assert store.fields == Fields(["age", "constant", "nothing"], {"town": 5})
        parts = [store.read(part, 0, store.size(part)) for part in ("train", "validation")]
    age = np.array([np.nan if row[0] == "" else row[0] for row in rows])
    standard = np.nan_to_num((age - np.nanmean(age[~chosen])) / np.nanstd(age[~chosen]))
    towns = {"": 0, "NA": 0, "Atlantis": 1}
    ids: dict[str, int] = {}
    for part, mask in zip(parts, (~chosen, chosen), strict=True):
        expected = [row for row, taken in zip(rows, mask, strict=True) if taken]
        np.testing.assert_allclose(part.dense[:, 0], standard[mask], atol=1e-6)
        assert not part.dense[:, 1:].any()
        assert part.label.tolist() == [row[2] == ">50K" for row in expected]
        for row, number in zip(expected, part.categorical[:, 0].tolist(), strict=True):
            assert ids.setdefault(row[1], number) == towns.get(row[1], number)
    assert sorted(ids.values()) == [0, 0, 1, 2, 3, 4]
    assert ids[rows[only][1]] == 1


@pytest.mark.launch
def test_parquet_is_as_good(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = table(500)
    only = int(np.flatnonzero(in_validation(np.arange(500)))[0])
    rows[only][1] = "Atlantis"
    columns = [[None if cell == "" else cell for cell in column] for column in zip(*rows, strict=True)]
    columns[3] = [1000.0] * 500
    parquet.write_table(arrow.table(columns, NAMES), tmp_path / "a.parquet", row_group_size=70)
    prepare_table(tmp_path / "a.parquet", tmp_path / "data.h5", "pay")
    check(tmp_path / "data.h5", rows, in_validation(np.arange(500)), only)
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"cut\.parquet is not a whole Parquet file"):
        prepare_table(tmp_path / "cut.parquet", tmp_path / "data.h5", "pay")


def test_parquet_without_pyarrow_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="read with pyarrow; pip install pyarrow"):
        prepare_table(tmp_path / "a.parquet", tmp_path / "data.h5", "pay")


@given(
    rows=st.lists(st.lists(st.text().filter(lambda text: not set(text) & {"\n", "\r", "\0"}), min_size=3, max_size=3))
)
def test_any_text_in_quotes_is_one_cell(rows: list[list[str]]) -> None:
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows([*rows, ["1", "2", "yes"]])
    piece = parse_lines(Columns(["a", "b", "label"], 2), Block("file", 2, 1, text.getvalue().encode()))
    missing = sum(row[2].strip() in ("", "NA", "NaN", "nan", "null") for row in rows)
    assert piece["bad"] == missing
    assert len(piece["label"]) == len(rows) + 1 - missing
    assert piece["numbers"][-1].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("cell", "is_number"),
    [("1", True), ("-1.5e3", True), (".5", True), ("", True), ("nan", True)]
    + [(word, False) for word in ("inf", "1_0", "0x1", "1e999", "١", "1,5", "word")],
)
def test_what_is_a_number(cell: str, is_number: bool) -> None:
    block = Block("file", 2, 1, f'"{cell}",yes\n7,no\n'.encode())
    assert parse_lines(Columns(["a", "label"], 1), block)["numeric"].tolist() == [is_number]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"1", "1 columns instead of 2"),
        (b"", "0 columns instead of 2"),
        (b"1,2,3", "3 columns instead of 2"),
        (b"1,", "no label"),
        (b'"1,2', "unexpected end of data"),
        (b"\xff,1", "'utf-8' codec can't decode"),
    ],
)
def test_what_is_wrong_with_a_line_is_said(line: bytes, reason: str) -> None:
    piece = parse_lines(Columns(["a", "label"], 1), Block("file", 2, 1, b"1,yes\n" + line + b"\n2,no\n"))
    assert piece["quotes"].tolist()[0].decode().startswith(f"file line 3: {reason}")
    assert len(piece["label"]) == 2


@pytest.mark.launch
@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"", {}, "is not a file with lines"),
        (b"a,b\n", {}, r"--label 'pay' is no column of .*; it has a, b"),
        (b"age,Pay\n", {}, r"did you mean 'Pay'\?"),
        (b"pay,a,a\n", {}, "two columns 'a'"),
        (b'pay,"a\n', {}, "line 1 should have the names of the columns"),
        (b"pay,a\n", {}, "--label 'pay' must have two values, and it has none"),
        (b"pay,a\n0,1\n1,1\n2,1\n", {}, "must have two values, and it has '0', '1', '2'"),
        (b"pay,a\n0,1\n", {}, "must have two values, and it has '0'$"),
        (b"pay,a\n0,1\n1,2\n", {"positive": "2"}, "--positive '2' is no value of 'pay'; its values are '0', '1'"),
        (b"pay,a\n0,1\n1\n", {}, "a.csv line 3: 1 columns instead of 2"),
        (b"pay,a\n0,1\n1,2\n", {"processes": 0}, "--processes 0 must be at least 1"),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, content: bytes, options: dict[str, Any], message: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        prepare_table(tmp_path / "a.csv", tmp_path / "data.h5", "pay", **options)
    assert not (tmp_path / "data.h5").exists()


@pytest.mark.launch
@pytest.mark.parametrize("positive", [None, "<=50K"])
def test_either_value_of_the_label_can_be_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], positive: str | None
) -> None:
    rows = table(200)
    chosen_by = ["--positive", positive] if positive else []
    table_path, output = str(write(tmp_path / "a.csv", rows)), str(tmp_path / "data.h5")
    assert main(["prepare", "table", "--input", table_path, "--output", output, "--label", "pay", *chosen_by]) == 0
    chosen = positive or ">50K"
    assert f"pay = {chosen!r} is 1" in capsys.readouterr().out
    with RowStore(tmp_path / "data.h5") as store:
        ones = sum(int(store.read(part, 0, 999).label.sum()) for part in ("train", "validation"))
    assert ones == sum(row[2] == chosen for row in rows)


@pytest.mark.launch
@pytest.mark.parametrize(("cell", "dense"), [("7", ["a"]), ("word", [])])
def test_there_need_not_be_both_kinds_of_columns(tmp_path: Path, cell: str, dense: list[str]) -> None:
    (tmp_path / "a.csv").write_text("\ufeffa,pay\n" + f"{cell},0\n{cell},1\n" * 50, encoding="utf-8")
    prepare_table(tmp_path / "a.csv", tmp_path / "data.h5", "pay")
    with RowStore(tmp_path / "data.h5") as store:
        assert store.fields.dense == dense
        rows = store.read("train", 0, 100)
        assert (rows.dense.shape[1], rows.categorical.shape[1]) == (len(dense), 1 - len(dense))
        assert rows.label.mean() == pytest.approx(0.5, abs=0.2)


@pytest.mark.launch
def test_memory_does_not_grow_with_the_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", 1 << 16)
    monkeypatch.setattr(vocabulary, "MERGE_VALUES", 1000)
    few, many = (write(tmp_path / f"{count}.csv", table(2000) * count) for count in (10, 100))
    peaks = [peak_of(lambda path=path: prepare_table(path, tmp_path / "data.h5", "pay")) for path in (few, many)]
    more = 90 * 2000 * (4 * (8 + 8) + 8)  # in the pieces: a number and a hash for each column, and the label
    assert peaks[1] - peaks[0] < more / 2, f"bytes: {peaks}, for {more} more in the pieces"
