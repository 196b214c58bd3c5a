"""Preparation of Criteo's lines, and the messages about bad ones."""

import contextlib
import gzip
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdistill.data.prepare import lines
from hpcdistill.data.prepare.lines import Block
from hpcdistill.data.prepare.split import in_validation
from hpcdistill.data.rows.prepare_criteo import CATEGORIES, INTEGERS, MISSING, parse, prepare_criteo
from hpcdistill.data.rows.store import Rows, RowStore
from hpcdistill.errors import UserError
from peak_memory import peak_of

pytestmark = pytest.mark.alone

Example = tuple[int, list[int | None], list[int | None]]
examples = st.tuples(
    st.integers(0, 1),
    st.lists(st.none() | st.integers(-(10**17), 10**17) | st.integers(-3, 99), min_size=INTEGERS, max_size=INTEGERS),
    st.lists(st.none() | st.integers(0, 2**32 - 1), min_size=CATEGORIES, max_size=CATEGORIES),
)
CELLS = [b"1", *[b"5"] * INTEGERS, *[b"0a1b2c3d"] * CATEGORIES]


def line_of(example: Example) -> bytes:
    label, integers, categories = example
    cells = [str(label), *("" if x is None else str(x) for x in integers)]
    return "\t".join(cells + ["" if x is None else f"{x:08x}" for x in categories]).encode()


def random_examples(count: int, seed: int = 0) -> list[Example]:
    """Draw categories for all columns: few frequent and many rare ones."""
    random = np.random.default_rng(seed)

    def some(values: np.ndarray) -> list[int | None]:
        return [None if random.random() < 0.2 else int(value) for value in values]

    return [
        (
            int(random.random() < 0.3),
            some(random.integers(-2, 500, INTEGERS)),
            some(random.zipf(1.5, CATEGORIES) % 2**32),
        )
        for _ in range(count)
    ]


def write(path: Path, examples: list[Example]) -> Path:
    path.write_bytes(b"".join(line_of(example) + b"\n" for example in examples))
    return path


def with_cell(column: int, cell: bytes) -> bytes:
    return b"\t".join([*CELLS[:column], cell, *CELLS[column + 1 :]])


def block_of(text: bytes, line: int = 1, row: int = 0) -> Block:
    return Block(Path("some/file"), line, row, text=text)


def read_all(path: Path) -> dict[str, Rows]:
    with RowStore(path) as store:
        return {part: store.read(part, 0, store.size(part)) for part in ("train", "validation")}


@given(
    rows=st.lists(st.tuples(examples, st.sampled_from([b"\n", b"\r\n"])), min_size=1, max_size=5),
    ended=st.booleans(),
    first=st.integers(0, 1000),
)
def test_every_line_is_read_as_it_was_written(rows: list[tuple[Example, bytes]], ended: bool, first: int) -> None:
    text = b"".join(line_of(example) + end for example, end in rows)
    lines = parse(block_of(text if ended else text.removesuffix(rows[-1][1]), row=first))
    assert not lines.bad
    assert lines.label.tolist() == [label for (label, _, _), _ in rows]
    expected = [[math.log1p(max(x or 0, 0)) for x in integers] for (_, integers, _), _ in rows]
    np.testing.assert_allclose(lines.dense, expected, rtol=1e-6)
    categories = np.stack(lines.categories, axis=1)
    assert categories.tolist() == [[MISSING if x is None else x for x in c] for (_, _, c), _ in rows]
    assert lines.numbers.tolist() == list(range(first, first + len(rows)))


@given(
    good=st.lists(examples, max_size=3),
    junk=st.binary(max_size=40).filter(lambda junk: b"\n" not in junk and junk.strip(b"\r")),
)
def test_any_junk_is_one_bad_line_and_spoils_no_other(good: list[Example], junk: bytes) -> None:
    text = b"".join(line + b"\n" for line in [junk, *map(line_of, good)])
    lines = parse(block_of(text, line=7))
    assert len(lines.bad) == 1
    assert lines.bad[0].startswith("file line 7: ")
    assert lines.label.tolist() == [label for label, _, _ in good]
    assert lines.numbers.tolist() == list(range(1, 1 + len(good)))


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_blank_lines_and_the_mark_of_utf_8_are_passed_over(end: bytes) -> None:
    line = b"\t".join(CELLS) + end
    lines = parse(block_of(b"\xef\xbb\xbf" + end + line + end + line + end + end))
    assert not lines.bad
    assert lines.numbers.tolist() == [1, 3]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b" ", "1 columns instead of 40: ' '"),
        (b"\t".join(CELLS[:-1]), "39 columns instead of 40"),
        (b"\t".join([*CELLS, b""]), "41 columns instead of 40"),
        (b",".join(CELLS), "1 columns instead of 40: '1,5,5,5"),
        (with_cell(0, b"01"), "column 1 is b'01', not 0 or 1"),
        (with_cell(2, b"+1"), "column 3 is b'+1', not an integer or nothing"),
        (with_cell(2, b"0x1f"), "column 3 is b'0x1f', not an integer or nothing"),
        (with_cell(2, b"1f"), "column 3 is b'1f', not an integer or nothing"),
        (with_cell(20, b"0a1b-c3d"), "column 21 is b'0a1b-c3d', not 8 hexadecimal digits or nothing"),
        (with_cell(0, b"2"), "column 1 is b'2', not 0 or 1"),
        (with_cell(0, b""), "column 1 is b'', not 0 or 1"),
        (with_cell(3, b"1.5"), "column 4 is b'1.5', not an integer or nothing"),
        (with_cell(3, b"-"), "column 4 is b'-', not an integer or nothing"),
        (with_cell(3, b"9" * 19), "column 4 is b'9999999999999999999', not an integer or nothing"),
        (with_cell(14, b"0x1b2c3d"), "column 15 is b'0x1b2c3d', not 8 hexadecimal digits or nothing"),
        (with_cell(39, b"0a1b2c3"), "column 40 is b'0a1b2c3', not 8 hexadecimal digits or nothing"),
        (with_cell(39, b"0a1b2c3d "), "column 40 is b'0a1b2c3d ', not 8 hexadecimal digits or nothing"),
    ],
)
def test_what_is_wrong_with_a_line_is_said(line: bytes, reason: str) -> None:
    lines = parse(block_of(b"\t".join(CELLS) + b"\n" + line + b"\n"))
    assert lines.bad[0].startswith(f"file line 2: {reason}")
    assert len(lines.label) == 1


@pytest.mark.launch
def test_files_become_a_store_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", 4000)
    rows = random_examples(400)
    write(tmp_path / "a.tsv", rows[:150])
    (tmp_path / "b.tsv.gz").write_bytes(gzip.compress(write(tmp_path / "b.tsv", rows[150:]).read_bytes()))
    inputs = [tmp_path / "a.tsv", tmp_path / "b.tsv.gz"]
    prepare_criteo(inputs, tmp_path / "data.h5", buckets=100)
    parts, chosen = read_all(tmp_path / "data.h5"), in_validation(np.arange(400))
    for part, mask in (("train", ~chosen), ("validation", chosen)):
        expected = [row for row, taken in zip(rows, mask, strict=True) if taken]
        assert parts[part].label.tolist() == [label for label, _, _ in expected]
        ids = [[0 if x is None else 1 + x % 99 for x in categories] for _, _, categories in expected]
        assert parts[part].categorical.tolist() == ids
    with RowStore(tmp_path / "data.h5") as store:
        assert store.source == ", ".join(map(str, inputs))
        assert store.fields.dense == [f"I{i}" for i in range(1, 14)]
        assert store.fields.categorical == {f"C{i}": 100 for i in range(1, 27)}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tsv", "b.tsv", "b.tsv.gz", "data.h5"]


@pytest.mark.launch
def test_with_a_minimal_count_ids_are_of_frequent_training_categories(tmp_path: Path) -> None:
    rows, chosen = random_examples(600), in_validation(np.arange(600))
    only = int(np.flatnonzero(chosen)[0])
    rows[only][2][:] = [0xDEADBEEF] * CATEGORIES  # in the validation part only
    prepare_criteo([write(tmp_path / "a.tsv", rows)], tmp_path / "data.h5", min_count=5)
    values = np.array([[MISSING if x is None else x for x in categories] for _, _, categories in rows])
    parts = read_all(tmp_path / "data.h5")
    ids = np.empty_like(values)
    ids[~chosen], ids[chosen] = parts["train"].categorical, parts["validation"].categorical
    assert (ids[only] == 1).all()
    assert ((ids == 0) == (values == MISSING)).all()
    with RowStore(tmp_path / "data.h5") as store:
        cardinalities = list(store.fields.categorical.values())
    for column in range(CATEGORIES):
        counted, counts = np.unique(values[~chosen, column], return_counts=True)
        frequent = counted[(counts >= 5) & (counted != MISSING)]
        assert cardinalities[column] == 2 + len(frequent)
        assert {*zip(frequent, range(2, 2 + len(frequent)), strict=True)} >= {
            (value, number) for value, number in zip(values[:, column], ids[:, column], strict=True) if number > 1
        }
        assert not set(values[ids[:, column] == 1, column]) & set(frequent)


@pytest.mark.launch
def test_bad_lines_are_passed_over_up_to_a_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", 10_000)
    path = write(tmp_path / "a.tsv", random_examples(300))
    good = path.read_bytes().splitlines(keepends=True)
    bad = [b"bad\n", b"3" + good[0][1:], b"\t\n", b"\xff\n"]
    for number, line in zip((10, 100, 200, 303), bad, strict=True):
        good.insert(number, line)
    path.write_bytes(b"".join(good))
    with pytest.raises(UserError, match=r"(?s)a\.tsv line 11: 1 columns.*--max-bad=N") as refused:
        prepare_criteo([path], tmp_path / "data.h5")
    assert "line 201" not in str(refused.value)
    with pytest.raises(UserError, match="bad lines: 4"):
        prepare_criteo([path], tmp_path / "data.h5", max_bad=3)
    assert not (tmp_path / "data.h5").exists()
    prepare_criteo([path], tmp_path / "data.h5", max_bad=4)
    said = capsys.readouterr().err
    assert "warning: passed over bad lines: 4, the first of them" in said
    assert [f"a.tsv line {n}: " in said for n in (11, 101, 201, 304)] == [True, True, True, False]
    assert sum(len(rows.label) for rows in read_all(tmp_path / "data.h5").values()) == 300


@pytest.mark.launch
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.tsv", None, "missing.tsv: No such file"),
        ("empty.tsv", b"", "empty.tsv is not a file with lines in it"),
        ("empty.tsv.gz", gzip.compress(b"", mtime=0), "no lines in"),
        ("cut.tsv.gz", gzip.compress(b"\t".join(CELLS), mtime=0)[:-9], "cut.tsv.gz cannot be read to its end"),
        ("plain.tsv.gz", b"\t".join(CELLS), "plain.tsv.gz cannot be read to its end: Not a gzipped file"),
        ("one.tsv", b"\t".join(CELLS), "too few rows for a training and a validation part"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        prepare_criteo([tmp_path / name], tmp_path / "data.h5")
    assert not (tmp_path / "data.h5").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"buckets": 9, "min_count": 9}, "choose one"),
        ({"buckets": 1}, "--buckets 1 must be at least 2"),
        ({"min_count": 0}, "--min-count 0 must be at least 1"),
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path: Path, options: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare_criteo([write(tmp_path / "a.tsv", random_examples(3))], tmp_path / "data.h5", **options)


@pytest.mark.launch
def test_a_bad_line_ends_the_command(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", random_examples(30))
    path.write_bytes(path.read_bytes() + b"bad\n")
    command = [sys.executable, "-m", "hpcdistill", "prepare", "criteo", "--input", str(path), "--min-count=2"]
    command.append(f"--output={tmp_path / 'data.h5'}")
    refused = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert refused.returncode != 0
    assert "a.tsv line 31: 1 columns instead of 40: 'bad'" in refused.stderr
    assert "Traceback" not in refused.stderr
    accepted = subprocess.run([*command, "--max-bad=1"], capture_output=True, text=True, timeout=200)
    assert accepted.returncode == 0
    assert "13 dense and 26 categorical fields" in accepted.stdout


@pytest.mark.launch
def test_memory_does_not_grow_with_the_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory does not grow with the length of a text without line ends, either."""
    monkeypatch.setattr(lines, "BLOCK_BYTES", 1 << 18)
    block = b"".join(line_of(example) + b"\n" for example in random_examples(2000))
    few, many, long = (tmp_path / name for name in ("few", "many", "long"))
    few.write_bytes(block * 5)
    many.write_bytes(block * 60)
    long.write_bytes(bytes(len(block) * 60))

    def prepare(path: Path) -> None:
        with contextlib.suppress(UserError):  # `long` has no rows
            prepare_criteo([path], path.with_suffix(".h5"), max_bad=1000)

    smallest, *others = (peak_of(lambda path=path: prepare(path)) for path in (few, many, long))
    more = many.stat().st_size - few.stat().st_size
    assert max(others) - smallest < more / 2, f"bytes: {smallest}, {others}, for {more} more of data"
