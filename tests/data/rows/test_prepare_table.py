"""Preparation of tables: files, columns, and messages."""

import csv
import gzip
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

import hpcdistill
from hpcdistill.cli.main import main
from hpcdistill.cli.parser import Parser
from hpcdistill.cli.prepare import add_parser
from hpcdistill.data.prepare import lines
from hpcdistill.data.prepare.lines import Block
from hpcdistill.data.prepare.split import in_validation
from hpcdistill.data.rows import categories, parquet_table
from hpcdistill.data.rows.chunk import MISSING_WORDS
from hpcdistill.data.rows.columns import Column
from hpcdistill.data.rows.csv_table import CsvTable
from hpcdistill.data.rows.encoding import combine, make_piece, measure
from hpcdistill.data.rows.prepare_table import ColumnChoices, prepare_table
from hpcdistill.data.rows.store import Fields, Rows, RowStore
from hpcdistill.errors import UserError
from peak_memory import peak_of

pytestmark = pytest.mark.alone

NAMES = ["age", "town", "pay", "constant", "nothing"]


def table(count: int) -> list[list[Any]]:
    """Return rows like those of census data: numbers, words, both with gaps, and a label of two words."""
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


def write(path: Path, rows: list[list[Any]], end: str = "\n", delimiter: str = ",") -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter, lineterminator=end).writerows([NAMES, *rows])
    return path


def write_parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    parquet.write_table(pyarrow.table(columns), path, **options)
    return path


def prepare(tmp_path: Path, content: str | bytes, label: str = "y", **options: Any) -> dict[str, Rows]:
    """Prepare a CSV file with this content; return the parts of the store."""
    source = tmp_path / "a.csv"
    source.write_bytes(content if isinstance(content, bytes) else content.encode())
    prepare_table([source], tmp_path / "data.h5", label, **options)
    return read_store(tmp_path / "data.h5")


def read_store(path: Path) -> dict[str, Rows]:
    with RowStore(path) as store:
        return {part: store.read(part, 0, store.size(part)) for part in ("train", "validation")}


def fields_of(path: Path) -> Fields:
    with RowStore(path) as store:
        return store.fields


def column(cells: list[Any], name: str = "x") -> str:
    """Write a table of a column, and of a label that is 0 and 1 in turns."""
    return f"{name},y\n" + "".join(f"{cell},{row % 2}\n" for row, cell in enumerate(cells))


REALS = [f"{number:.3f}" for number in np.random.default_rng(1).standard_normal(400)]


@pytest.mark.launch
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_columns_become_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", 2000)
    rows = table(500)
    only = int(np.flatnonzero(in_validation(np.arange(1, 501)))[0])
    rows[only][1] = "Atlantis"  # in the validation part only
    prepare_table([write(tmp_path / "a.csv", rows, end)], tmp_path / "data.h5", "pay")
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
def test_parquet_is_as_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_table, "TASK_ROWS", 100)
    rows = table(500)
    only = int(np.flatnonzero(in_validation(np.arange(500)))[0])
    rows[only][1] = "Atlantis"
    columns = [[None if cell == "" else cell for cell in column] for column in zip(*rows, strict=True)]
    columns[3] = [1000.0] * 500
    whole = write_parquet(tmp_path / "a.parquet", dict(zip(NAMES, columns, strict=True)), row_group_size=70)
    prepare_table([whole], tmp_path / "data.h5", "pay")
    check(tmp_path / "data.h5", rows, in_validation(np.arange(500)), only)
    content = whole.read_bytes()
    (tmp_path / "cut.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"cut\.parquet is not a complete Parquet file"):
        prepare_table([tmp_path / "cut.parquet"], tmp_path / "data.h5", "pay")


@pytest.mark.parametrize("kind", ["table", "criteo"])
def test_a_lack_of_pyarrow_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, f"hpcdistill.data.rows.prepare_{kind}", raising=False)
    parser = Parser()
    add_parser(parser.add_subparsers())
    label = ["--label=y"] if kind == "table" else []
    args = parser.parse_args(["prepare", kind, f"--input={tmp_path}", f"--output={tmp_path / 'data.h5'}", *label])
    with pytest.raises(UserError, match="read with pyarrow; pip install pyarrow"):
        args.command(args)


# Parsing of CSV


@given(
    rows=st.lists(st.lists(st.text().filter(lambda text: not set(text) & {"\r", "\0"}), min_size=3, max_size=3)),
    delimiter=st.sampled_from(",;|\t"),
)
def test_any_text_in_quotes_is_one_cell(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], delimiter: str
) -> None:
    text = io.StringIO()
    written = [["a", "b", "label"], ["0", "0", "no"], *rows, ["1", "2", "yes"]]
    csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(written)
    path = tmp_path_factory.mktemp("text") / "a.csv"
    path.write_bytes(text.getvalue().encode())
    columns = [Column(name, "dense", "user") for name in ("a", "b")]
    opened = CsvTable([path])
    piece = make_piece(columns, opened.read("label", columns, next(opened.tasks())))
    missing = sum(row[2].strip() in MISSING_WORDS for row in rows)
    assert piece["bad"] == missing
    assert len(piece["label"]) == len(rows) + 2 - missing
    numbers = piece["dense"] * piece["units"][:, 1] + piece["units"][:, 0]
    assert any(row == pytest.approx([1, 2], abs=1e-2) for row in numbers)


@pytest.mark.launch
@pytest.mark.parametrize("size", [7, 60, 5000])
def test_a_table_is_the_same_however_it_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Messages name the right lines after values of several lines, blank lines and stray quotes."""
    content = 'x,t,y\n"1","a\nb",0\n\n2,"say ""hi""",1\n3,5" pipe,0\n4,"open,1\n5,\'single\',1\r\n' * 30
    content = content.replace("\nx,t,y", "") + "\n\n"
    whole = prepare(tmp_path, content, max_bad=30)
    monkeypatch.setattr(lines, "BLOCK_BYTES", size)
    cut = prepare(tmp_path, content + "\n", max_bad=30)
    for part in whole:
        for one, other in zip(whole[part], cut[part], strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)
    assert sum(len(rows.label) for rows in whole.values()) == 4 * 30


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"1", "1 columns instead of 2"),
        (b"1,2,3", "3 columns instead of 2"),
        (b"1,", "no label"),
        (b"1,NA", "no label"),
        (b'"1,2', "a quoted value is not closed"),
        (b"\xff,1", "'utf-8' codec can't decode"),
    ],
)
def test_what_is_wrong_with_a_line_is_said(tmp_path: Path, line: bytes, reason: str) -> None:
    path, text = tmp_path / "file", b"a,label\n1,yes\n" + line + b"\n2,no\n"
    path.write_bytes(text)
    columns = [Column("a", "dense", "user")]
    piece = make_piece(columns, CsvTable([path]).read("label", columns, Block(path, 1, 0, text=text)))
    assert piece["quotes"].tolist()[0].decode().startswith(f"file line 3: {reason}")
    assert len(piece["label"]) == 2


@pytest.mark.launch
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.CSV.zst"])
def test_delimiters_and_packed_files_are_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], delimiter: str, name: str
) -> None:
    rows, packed = table(300), tmp_path / name
    content = b"\xef\xbb\xbf" + write(tmp_path / "plain", rows, delimiter=delimiter).read_bytes()
    if name.endswith("gz"):
        content = gzip.compress(content[:99]) + gzip.compress(content[99:])
    elif name.endswith("zst"):
        content = pyarrow.Codec("zstd").compress(content, asbytes=True)
    packed.write_bytes(content)
    prepare_table([packed], tmp_path / "data.h5", "pay")
    assert ("values are separated by" in capsys.readouterr().out) == (delimiter != ",")
    prepare_table([write(tmp_path / "a", rows)], tmp_path / "plain.h5", "pay")
    with RowStore(tmp_path / "data.h5") as one, RowStore(tmp_path / "plain.h5") as other:
        assert one.identity == other.identity


@pytest.mark.launch
def test_a_cell_may_be_long_and_a_file_have_no_last_line_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", 1 << 18)
    long = "x" * 50_000
    parts = prepare(tmp_path, ("t,y\n" + f"{long}1,0\n{long}2,1\n" * 40).strip())
    assert sum(len(rows.label) for rows in parts.values()) == 80
    assert fields_of(tmp_path / "data.h5").categorical == {"t": 4}


@pytest.mark.launch
def test_what_has_no_lines_is_refused_and_not_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", 200)
    with pytest.raises(UserError, match="has a line of more than"):
        prepare(tmp_path, f"x,y\n{'1' * 10_000},1\n" + column(REALS), max_bad=1000)
    parts = prepare(tmp_path, column([*REALS, '"1', *REALS]), max_bad=1)
    assert sum(len(rows.label) for rows in parts.values()) == 800


# Search for files


@pytest.mark.launch
@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_folder_of_parts_is_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str) -> None:
    folder = tmp_path / "table"
    folder.mkdir()
    for name in ("_SUCCESS", ".part-0.crc", "_metadata"):
        (folder / name).touch()
    (folder / "README").write_text("a word")
    rows = table(600)
    for number in range(3):
        part = rows[200 * number : 200 * (number + 1)]
        if form == "csv":
            write(folder / f"part-{number}.csv", part)
        else:
            columns = dict(zip(NAMES, map(list, zip(*part, strict=True)), strict=True))
            columns["age"] = [None if age == "" else age for age in columns["age"]]
            if number == 1:
                columns["nothing"] = [None] * 200  # the type null
            write_parquet(folder / f"part-{number}.PARQUET", columns)
    prepare_table([folder], tmp_path / "data.h5", "pay")
    assert "1 files of other kinds are passed over: README" in capsys.readouterr().err
    assert sum(len(part.label) for part in read_store(tmp_path / "data.h5").values()) == 600
    with RowStore(tmp_path / "data.h5") as one:
        prepare_table(sorted(folder.glob("part*")), tmp_path / "files.h5", "pay")
        with RowStore(tmp_path / "files.h5") as other:
            assert one.identity == other.identity


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: (folder / "b.csv").write_text("x,z\n1,2\n"), "b.csv has the columns x, z, and .*a.csv x, y"),
        (lambda folder: write_parquet(folder / "b.pq", {"x": [1], "y": [1]}), "prepare files of one kind together"),
        (lambda folder: (folder / "b.csv").write_text(""), "b.csv is not a file with lines in it"),
        (lambda folder: (folder / "b").mkdir(), "has no file whose name ends in .parquet"),
    ],
)
def test_files_that_are_not_alike_are_named(tmp_path: Path, make: Callable[[Path], Any], message: str) -> None:
    (tmp_path / "a.csv").write_text(column(REALS))
    make(tmp_path)
    with pytest.raises(UserError, match=message):
        prepare_table(sorted(tmp_path.iterdir()), tmp_path / "data.h5", "y")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"x": ["a"], "y": [1]}, "column 'x' has the type string in .*b.pq, and int64 in .*a.pq; .*--drop 'x'"),
        ({"z": [1], "y": [1]}, "has the columns z, y, and"),
    ],
)
def test_parquet_files_of_other_types_are_named(tmp_path: Path, other: dict[str, Any], message: str) -> None:
    files = [write_parquet(tmp_path / "a.pq", {"x": [1], "y": [1]}), write_parquet(tmp_path / "b.pq", other)]
    with pytest.raises(UserError, match=message):
        prepare_table(files, tmp_path / "data.h5", "y")


@pytest.mark.launch
@pytest.mark.parametrize("ending", [b".csv", b".csv.gz", b".parquet"])
def test_a_name_need_not_be_utf_8(tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: bytes) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9" + ending)
    if ending == b".parquet":
        with path.open("wb") as file:
            parquet.write_table(pyarrow.table({"x": [*map(float, REALS[1:]), np.inf], "y": [0, 1] * 200}), file)
    else:
        content = column([*REALS[1:], "inf"]).replace(",", ";").encode()
        path.write_bytes(gzip.compress(content) if ending.endswith(b"gz") else content)
    prepare_table([path], tmp_path / "data.h5", "y")
    with RowStore(tmp_path / "data.h5") as store:
        assert store.source.endswith("caf\\xe9" + ending.decode())


def test_a_folder_of_folders_is_refused(tmp_path: Path) -> None:
    (tmp_path / "year=2020").mkdir()
    with pytest.raises(UserError, match="has folders in it, such as year=2020"):
        prepare_table([tmp_path], tmp_path / "data.h5", "y")


@pytest.mark.launch
@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"", {}, "is not a file with lines"),
        (b"a,b\n", {}, r"--label 'pay' is not a column of .*; it has a, b"),
        (b"age,Pay\n", {}, r"did you mean 'Pay'\?"),
        (b"pay,a,a\n", {}, "two columns 'a'"),
        (b'pay,"a\n', {}, "line 1 should have the names of the columns"),
        (b"pay,a\n", {}, "--label 'pay' must have two values, and it has none"),
        (b"pay,a\n0,1\n1,1\n2,1\n", {}, "must have two values, and it has '0', '1', '2'"),
        (b"pay,a\n0,1\n", {}, "must have two values, and it has '0';"),
        (b"pay,a\n0,1\n1,2\n", {"positive": "2"}, "--positive '2' is not a value of 'pay'; its values are '0', '1'"),
        (b"pay,a\n0,1\n1\n", {}, "a.csv line 3: 1 columns instead of 2"),
        (b"pay,a\n0,1\n1,2\n", {"processes": 0}, "--processes 0 must be at least 1"),
        (b"pay\n0\n1\n", {}, "no column to learn from besides the label"),
        (b"\xef\xbb\xbf\n \n", {}, "is not a file with lines"),
        (b"pay,caf\xe9\n", {}, "line 1 should have the names of the columns: 'utf-8' codec.*iconv"),
        (b"PK\3\4\0\0", {}, "zero bytes, as UTF-16, spreadsheets"),
        ("pay,a\n1,2\n".encode("utf-16"), {}, "zero bytes, as UTF-16"),
        (b"pay,a\r1,2\r", {}, "carriage returns only"),
        (
            b"pay,a\n1,2\n",
            {"choices": ColumnChoices(drop=["pya"])},
            r"--drop 'pya' is not a column of .*did you mean 'pay'",
        ),
        (
            b"pay,a\n1,2\n",
            {"choices": ColumnChoices(dense=["pay"])},
            "--dense 'pay': that column is in --label as well",
        ),
        (
            b"pay,a\n1,2\n",
            {"choices": ColumnChoices(categorical=["a"], drop=["a"])},
            "--drop 'a': that column is in --categorical as well; choose one",
        ),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, content: bytes, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare(tmp_path, content, "pay", **options)
    assert not (tmp_path / "data.h5").exists()


# Encoding of columns, and warnings


@pytest.mark.launch
@pytest.mark.parametrize(
    ("cells", "is_dense", "warning"),
    [
        ([*REALS[1:], "oops"], True, "1 of its 400 values are not numbers.* 'oops' .a.csv line 401.*--categorical 'x'"),
        ([*REALS[1:], "inf"], True, "1 infinite values of 400 count as missing, the first in a.csv line 401"),
        ([*REALS[20:], *["odd"] * 20], True, "20 of its 400 values are not numbers.*'odd' .a.csv line 382"),
        ([*REALS[40:], *["odd"] * 40], False, "categorical, though 360 of its 400 values are numbers.*--dense 'x'"),
        ([f'"1,{row:03}"' for row in range(400)], False, "dates in a notation that is not read, as '1,000'.*--drop"),
        ([f"id{row}" for row in range(400)], False, "a different value in every row.*: 'x'. To leave out: --drop x"),
        ([1000 - row for row in range(400)], True, "a different value in every row.*: 'x'. To leave out: --drop x"),
        (["7"] * 400, True, "the same value in every row.*: 'x'. To leave out: --drop x"),
        (["a"] * 400, False, "the same value in every row.*: 'x'"),
        ([""] * 400, True, "the same value in every row.*: 'x'"),
        ([*REALS[1:], "None"], True, None),
        ([*["a", "NA"] * 200], False, None),
        ([row // 2 for row in range(400)], True, None),
    ],
)
def test_columns_that_are_not_all_they_seem_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cells: list[Any], is_dense: bool, warning: str | None
) -> None:
    prepare(tmp_path, column(cells))
    said = capsys.readouterr().err
    assert fields_of(tmp_path / "data.h5").dense == ["x"] * is_dense
    assert ("warning" in said) == (warning is not None)
    if warning:
        assert re.search(warning, said)


@pytest.mark.launch
@pytest.mark.parametrize(("begin", "rest"), [("1.5", "word"), ("word", "1.5"), ("", "word")])
def test_a_begin_that_misleads_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], begin: str, rest: str
) -> None:
    """All values of a column decide on its kind, and bad lines are reported once."""
    monkeypatch.setattr(lines, "HEAD_BYTES", 100)
    content = column([begin] * 30 + [rest] * 1000) + "bad\n"
    prepare(tmp_path, content, max_bad=1)
    assert fields_of(tmp_path / "data.h5").dense == (["x"] if rest == "1.5" else [])
    assert capsys.readouterr().err.count("passed over bad lines: 1") == 1


@pytest.mark.launch
def test_columns_become_what_the_user_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The integers of Avazu's data are mostly codes, and some are ids."""
    random = np.random.default_rng(0)
    names = ["id", "click", "hour", "C1", "site_id", "C14"]
    rows = [
        [1000009418151094273 + row, row % 2, 14102100 + row % 24, random.choice([1002, 1005]), f"{row % 9:x}", row % 50]
        for row in range(500)
    ]
    choices = ColumnChoices(categorical=["hour", "C1", "site_id"], dense=["C14"], drop=["id"])
    text = "\n".join(",".join(map(str, row)) for row in [names, *rows])
    prepare(tmp_path, text, "click", choices=choices)
    assert fields_of(tmp_path / "data.h5") == Fields(["C14"], {"hour": 26, "C1": 4, "site_id": 11})
    assert "warning" not in capsys.readouterr().err
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    columns["C1"], columns["C14"] = list(map(int, columns["C1"])), list(map(str, columns["C14"]))
    write_parquet(tmp_path / "a.parquet", columns)
    options = ["--label=click", "--drop=id", "--categorical", "hour", "C1", "--dense=C14", "--categorical=site_id"]
    paths = [f"--input={tmp_path / 'a.parquet'}", f"--output={tmp_path / 'data.h5'}"]
    assert main(["prepare", "table", *paths, *options]) == 0
    assert fields_of(tmp_path / "data.h5") == Fields(["C14"], {"hour": 26, "C1": 4, "site_id": 11})


@pytest.mark.launch
@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
def test_an_index_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    prepare(tmp_path, f"{name},x,y\n" + "".join(f"{row},{real},{row % 2}\n" for row, real in enumerate(REALS)))
    assert fields_of(tmp_path / "data.h5") == Fields(["x"], {})
    assert f"left out {name!r}" in capsys.readouterr().err


@pytest.mark.launch
@pytest.mark.parametrize("choices", [ColumnChoices(), ColumnChoices(dense=["row"])])
def test_the_index_of_pandas_is_left_out_unless_it_is_wanted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], choices: ColumnChoices
) -> None:
    content = pyarrow.table(
        {"x": list(map(float, REALS)), "y": [0, 1] * 200, "row": range(400), "__index_level_1__": range(400)}
    )
    content = content.replace_schema_metadata({"pandas": '{"index_columns": ["row", {"kind": "range"}]}'})
    parquet.write_table(content, tmp_path / "a.parquet")
    prepare_table([tmp_path / "a.parquet"], tmp_path / "data.h5", "y", choices=choices)
    left_out = capsys.readouterr().err.split("left out ")[1]
    assert fields_of(tmp_path / "data.h5").dense == ["x", *choices.dense]
    assert ("'row'" in left_out.split(",")[0]) == (not choices.dense)
    assert "'__index_level_1__'" in left_out


@pytest.mark.launch
def test_types_of_parquet_are_believed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = {
        "real": [*map(float, REALS[1:]), np.inf],
        "codes": [str(row % 40) for row in range(400)],
        "flag": [row % 3 == 0 for row in range(400)],
        "nested": [[1]] * 400,
        "time": pyarrow.array(np.arange(400) // 2 * 10**9, pyarrow.timestamp("ns")),
        "y": [row % 2 == 0 for row in range(400)],
    }
    write_parquet(tmp_path / "a.parquet", columns)
    with pytest.raises(UserError, match=r"column 'nested' of .*a\.parquet has the type list.*--drop 'nested'"):
        prepare_table([tmp_path / "a.parquet"], tmp_path / "data.h5", "y")
    prepare_table([tmp_path / "a.parquet"], tmp_path / "data.h5", "y", choices=ColumnChoices(drop=["nested"]))
    assert fields_of(tmp_path / "data.h5") == Fields(["real", "time"], {"codes": 42, "flag": 4})
    said = capsys.readouterr()
    assert "column 'real' is dense; 1 infinite values of 400 count as missing" in said.err
    assert "column 'codes' is categorical, though 400 of its 400 values are numbers" in said.err
    assert said.out.splitlines()[-1] == "y = 'true' is 1, 'false' is 0"


@pytest.mark.launch
@pytest.mark.parametrize(
    ("values", "one"),
    [
        ([0.0, 1.0], "'1'"),
        ([b"\xff", b"a"], "'a'"),
        ([False, True], "'true'"),
        (pyarrow.array([5, 6], pyarrow.timestamp("ns")), "'1970-01-01 00:00:00.000000006'"),
    ],
)
def test_a_label_of_any_type_has_two_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], values: Any, one: str
) -> None:
    column = pyarrow.array(values).take(pyarrow.array([0, 1, None] + [0, 1] * 100))
    write_parquet(tmp_path / "a.parquet", {"x": [1.0, *map(float, REALS[:202])], "y": column})
    prepare_table([tmp_path / "a.parquet"], tmp_path / "data.h5", "y", max_bad=1)
    said = capsys.readouterr()
    assert said.out.splitlines()[-1].startswith(f"y = {one} is 1")
    assert "a.parquet row 3: no label" in said.err
    write_parquet(tmp_path / "a.parquet", {"x": [1.0], "y": [[1]]})
    with pytest.raises(UserError, match=r"--label 'y' of .* has the type list"):
        prepare_table([tmp_path / "a.parquet"], tmp_path / "data.h5", "y")


@pytest.mark.launch
@pytest.mark.parametrize(("pair", "one", "warned"), [(("+1", "-1"), "+1", False), (("Pear", "apple"), "Pear", True)])
def test_which_value_is_1_is_said_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], pair: tuple[str, str], one: str, warned: bool
) -> None:
    parts = prepare(tmp_path, "x,y\n" + "".join(f"{real},{pair[row % 2]}\n" for row, real in enumerate(REALS)))
    said = capsys.readouterr()
    assert said.out.splitlines()[-1].startswith(f"y = {one!r} is 1")
    assert ("--positive=apple" in said.err.splitlines()[-1]) == warned
    assert sum(int(part.label.sum()) for part in parts.values()) == 200


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
    prepare_table([tmp_path / "a.csv"], tmp_path / "data.h5", "pay")
    with RowStore(tmp_path / "data.h5") as store:
        assert store.fields.dense == dense
        rows = store.read("train", 0, 100)
        assert (rows.dense.shape[1], rows.categorical.shape[1]) == (len(dense), 1 - len(dense))
        assert rows.label.mean() == pytest.approx(0.5, abs=0.2)


@pytest.mark.launch
def test_memory_does_not_grow_with_the_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", 1 << 16)
    monkeypatch.setattr(categories, "MERGE_VALUES", 1000)
    few, many = (write(tmp_path / f"{count}.csv", table(2000) * count) for count in (20, 200))
    peaks = [peak_of(lambda path=path: prepare_table([path], tmp_path / "data.h5", "pay")) for path in (few, many)]
    more = 180 * 2000 * (4 * (8 + 8) + 8)  # bytes of the pieces: a number and a hash for each column, and the label
    assert peaks[1] - peaks[0] < more / 2, f"bytes: {peaks}, for {more} more in the pieces"


@given(
    parts=st.lists(
        st.lists(st.floats(-1e300, 1e300) | st.sampled_from([1e-300, 1e-120, 0.1]), max_size=6), min_size=1, max_size=4
    )
)
def test_moments_are_those_of_all_numbers(parts: list[list[float]]) -> None:
    numbers = [number for part in parts for number in part]
    moments = combine(*np.array([measure(np.array(part)) for part in parts]).T)
    if not numbers:
        assert moments == (0, 0, 0)
        return
    scale = max(map(abs, numbers)) or 1.0
    scaled = np.array(numbers) / scale
    assert moments.size == len(numbers)
    assert moments.mean / scale == pytest.approx(scaled.mean(), abs=1e-12)
    assert moments.deviation / scale == pytest.approx(scaled.std(), abs=1e-7)
    if len(set(numbers)) == 1:
        assert moments == (len(numbers), numbers[0], 0)


@pytest.mark.launch
@pytest.mark.parametrize("numbers", [[1e-120, 2e-120], [0.0, 1e-120], [1.5e300, 1e300], [1.7e15 + 1e6, 1.7e15]])
def test_numbers_of_any_size_are_standardised(tmp_path: Path, numbers: list[float]) -> None:
    parts = prepare(tmp_path, column([repr(numbers[row % 3 == 0]) for row in range(600)]))
    values = parts["train"].dense[:, 0].astype(np.float64)
    assert (values.mean(), values.std()) == (pytest.approx(0, abs=1e-5), pytest.approx(1, abs=1e-5))
    assert len(np.unique(values)) == 2


@pytest.mark.launch
def test_an_outlier_of_the_validation_part_stays_finite(tmp_path: Path) -> None:
    cells = list(REALS)
    cells[int(np.flatnonzero(in_validation(np.arange(1, 401)))[0])] = "1e300"
    parts = prepare(tmp_path, column(cells))
    assert np.isfinite(parts["validation"].dense).all()
    assert parts["train"].dense.std() == pytest.approx(1, abs=1e-5)


@pytest.mark.launch
def test_preparing_starts_without_torch() -> None:
    """Importing torch takes a second, as long as preparing a million rows."""
    rooms = "hpcdistill.cli.main, hpcdistill.data.rows.prepare_table, hpcdistill.data.rows.prepare_criteo"
    script = f"import sys, {rooms}; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200, check=True)
    assert answer.stdout == "False\n"


def test_the_package_has_what_it_says_it_has() -> None:
    assert all(getattr(hpcdistill, name) is not None for name in hpcdistill.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'codistilation_loss'"):
        _ = hpcdistill.codistilation_loss
