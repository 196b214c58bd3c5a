"""Records of CSV: equal to those of Python's csv module, wherever the text is cut; errors never join records."""

import csv
import io
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hpcdistill.data.rows.csv_records import Grammar

pytestmark = pytest.mark.alone

COMMA = Grammar(",")
awkward = st.text(st.sampled_from('ab", \n;é'), max_size=6)


def written(rows: list[list[str]], **options: int) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n", **options).writerows(rows)
    return text.getvalue().encode()


def values(record: bytes, delimiter: str = ",") -> list[str]:
    return next(csv.reader(io.StringIO(record.decode(), newline=""), delimiter=delimiter, strict=True))


def begins(rows: list[list[str]]) -> list[int]:
    """Return the line on which each row begins, from 0."""
    return [written(rows[:place]).count(b"\n") for place in range(len(rows))]


@given(rows=st.lists(st.lists(awkward, min_size=2, max_size=2), min_size=1, max_size=6))
@example(rows=[["", '"'], ["", '",\n']])
def test_what_csv_writes_is_found_record_by_record(rows: list[list[str]]) -> None:
    text = written(rows)
    records = COMMA.read(text, 2)
    assert not records.bad
    assert records.lines.tolist() == begins(rows)
    read = list(csv.reader(io.StringIO(records.text.decode(), newline=""), strict=True))
    assert [[cell.strip() for cell in row] for row in read] == [[cell.strip() for cell in row] for row in rows]
    if COMMA.is_plain(text):
        assert COMMA.locate(text).tolist() == begins(rows)


@given(
    rows=st.lists(st.lists(awkward, min_size=2, max_size=2), min_size=1, max_size=8),
    junk=st.sampled_from(["", 'x,"y\n', 'x"y,z\n', 'x,"y"z\n', '"x,y\n"x,y\n']),
    place=st.integers(0, 8),
    cut=st.integers(0, 200),
)
def test_a_text_is_cut_where_all_of_it_would_be(rows: list[list[str]], junk: str, place: int, cut: int) -> None:
    """The whole records at the beginning of a text and its rest, read apart, equal the text read at once."""
    text = written(rows[:place]) + junk.encode() + written(rows[place:])
    end = COMMA.whole(text[:cut])
    assert end == 0 or text[end - 1 : end] == b"\n"
    first, rest, whole = COMMA.read(text[:end], 2), COMMA.read(text[end:], 2), COMMA.read(text, 2)
    assert first.bad + [(text.count(b"\n", 0, end) + line, *bad) for line, *bad in rest.bad] == whole.bad
    assert [*first.text.splitlines(), *rest.text.splitlines()] == whole.text.splitlines()


@pytest.mark.parametrize("quote", ['"', 'a"', 'a,"', '"a",b"'])
@given(rows=st.lists(st.lists(st.sampled_from(["1", "22", "a b"]), min_size=2, max_size=2), min_size=1, max_size=5))
def test_a_stray_quote_costs_its_own_line_only(quote: str, rows: list[list[str]]) -> None:
    """Records after an open quote are read, quoted or not, wherever the next quote is."""
    for options in ({}, {"quoting": csv.QUOTE_ALL}):
        line = f'{quote}x,"y\n'.encode()
        records = COMMA.read(written(rows, **options) + line + written(rows, **options), 2)
        assert [number for number, *_ in records.bad] == [len(rows)]
        assert [values(record) for record in records.text.splitlines()] == rows + rows


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b"1", "1 columns instead of 2"),
        (b"1,2,3", "3 columns instead of 2"),
        (b'1,"2,3"x', "a quoted value is not closed, or a quote in it not doubled"),
        (b'"1,2', "a quoted value is not closed"),
        (b"1,2\r3,4", "a carriage return that ends no line"),
        (b"\xff,1", "'utf-8' codec can't decode byte 0xff.*iconv"),
    ],
)
def test_what_is_wrong_with_a_line_is_said(line: bytes, fault: str) -> None:
    records = COMMA.read(b"a,b\n\n" + line + b"\nc,d\n", 2)
    ((number, found, quoted),) = records.bad
    assert (number, quoted.strip(), records.text, records.lines.tolist()) == (2, line, b"a,b\nc,d", [0, 3])
    assert re.match(fault, found)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        (b'5" pipe,1\n', [['5" pipe', "1"]]),
        (b'1, "a, b" \n', [["1", "a, b"]]),
        (b'"a\r\nb",1\r\n', [["a\r\nb", "1"]]),
        (b" \n\n\r\n1,2", [["1", "2"]]),
        (b'"",""\n', [["", ""]]),
    ],
)
def test_what_is_unusual_is_read(text: bytes, rows: list[list[str]]) -> None:
    records = COMMA.read(text, 2)
    assert not records.bad
    assert list(csv.reader(io.StringIO(records.text.decode(), newline=""), strict=True)) == rows


def test_an_unclosed_quote_takes_no_line_behind_it_along() -> None:
    text = b'a,"b\n' + b"c,d\n" * 100_000
    records = COMMA.read(text, 2)
    assert len(records.bad) == 1
    assert len(records.lines) == 100_000
