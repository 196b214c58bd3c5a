"""Documents of every file format: plain and compressed text, JSON lines and Parquet."""

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hpcdistill.data.tokens import formats
from hpcdistill.data.tokens.parts import is_chosen
from hpcdistill.data.tokens.prepare_text import prepare_text
from hpcdistill.errors import UserError
from peak_memory import peak_of
from texts import RECORDS, TEXTS, json_lines, parquet, prepared, told, write, zstd

pytestmark = pytest.mark.alone


@pytest.mark.parametrize("name", RECORDS)
def test_records_are_documents(tmp_path: Path, name: str) -> None:
    write(tmp_path, {name: RECORDS[name](TEXTS)})
    train, validation = prepared([tmp_path / name])
    encoded = [text.encode() for text in TEXTS]
    assert validation.split(b"\0")[:-1] == [text for text in encoded if is_chosen(text)]
    assert train.split(b"\0")[:-1] == [text for text in encoded if not is_chosen(text)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_of_few_records_the_end_of_the_file_is_for_validation(tmp_path: Path, name: str) -> None:
    write(tmp_path, {name: RECORDS[name](["a" * 900, "", "b" * 100])})
    assert prepared([tmp_path / name]) == [b"a" * 900 + b"\0" + b"b" * 50 + b"\0", b"b" * 50 + b"\0"]


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_text_may_be_packed(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    text = "naïve words\n".encode() * 5000
    name = "a.txt.gz" if pack is gzip.compress else "a.txt.zst"
    write(tmp_path, {name: pack(text)})
    assert b"".join(prepared([tmp_path / name])) == text


@pytest.mark.parametrize(
    "content",
    [b'{\n  "text": "no line"\n}\n', b'[{"text": "in a list"}]', b'{"other": 1}', b"{ no JSON, but much text"],
)
def test_json_that_is_not_in_lines_is_text(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, {"a.json": content})
    assert b"".join(prepared([tmp_path / "a.json"])) == content


def test_kinds_may_be_mixed_and_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    contents = {"a.txt": b"some words", "b.jsonl": json_lines(TEXTS), "c.parquet": parquet(TEXTS), "d.txt": b""}
    train, validation = prepared([write(tmp_path / "in", contents)])
    assert sorted((train + validation).split(b"\0")[:-1]) == sorted([b"some words", *[t.encode() for t in TEXTS * 2]])
    assert "801 documents, in files of text (2), JSON lines (1), Parquet (1); validation: whole documents" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_another_column_can_be_chosen(tmp_path: Path, name: str) -> None:
    records = [{"text": "wrong", "content": text} for text in TEXTS]
    if name == "a.jsonl":
        (tmp_path / name).write_text("\n".join(map(json.dumps, records)))
    else:
        pq.write_table(pa.Table.from_pylist(records), tmp_path / name)
    train, validation = prepared([tmp_path / name], column="content")
    assert sorted((train + validation).split(b"\0")[:-1]) == sorted(text.encode() for text in TEXTS)


@pytest.mark.parametrize(
    ("name", "column", "message"),
    [
        ("a.jsonl", "content", r"a.jsonl line 1: no 'content' among 'id', 'text'; --column chooses another: "),
        ("a.json", "content", r"a.json line 1: no 'content' among 'id', 'text'; --column chooses another: "),
        ("a.parquet", "content", r"a.parquet has no column 'content' among 'id', 'text'; --column chooses another"),
        ("a.parquet", "id", r"a.parquet: column 'id' is of int64, not text; --column chooses another"),
        ("a.txt", "text", r"--column text is for Parquet and JSON lines, and there are none; leave it out"),
    ],
)
def test_a_column_that_cannot_be_is_refused(tmp_path: Path, name: str, column: str, message: str) -> None:
    write(tmp_path, {name: RECORDS.get(name, json_lines)(TEXTS)})
    with pytest.raises(UserError, match=message):
        prepared([tmp_path / name], column=column)


BAD_LINES = [
    b"no JSON",
    b'{"text": "cut',
    b'["text"]',
    b'{"id": 7}',
    b'{"text": null}',
    b'{"text": 7}',
    b'{"text": "zero \\u0000"}',
    b'{"text": "half \\ud800"}',
    b'{"text": "\xff"}',
    b"[" * 100_000,
    b'{"text": ' + b"9" * 10_000 + b"}",
]


def test_bad_lines_are_passed_over_up_to_a_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = json_lines(TEXTS).splitlines()
    lines[5:5] = BAD_LINES
    write(tmp_path, {"a.jsonl": b"\n".join(lines)})
    with pytest.raises(UserError, match=r"(?s)bad records: 11 so far.*a.jsonl line 6: .*line 8: not a.*--max-bad=N"):
        prepared([tmp_path / "a.jsonl"], max_bad=10)
    assert not (tmp_path / "prepared.h5").exists()
    assert b"".join(prepared([tmp_path / "a.jsonl"], max_bad=11)).count(b"\0") == len(TEXTS)
    assert told(capsys)[0].startswith("passed over bad records: 11, the first of them")


def test_bad_rows_are_passed_over_up_to_a_number(tmp_path: Path) -> None:
    write(tmp_path, {"a.parquet": parquet([*TEXTS, None, "zero \0"])})
    with pytest.raises(UserError, match=r"(?s)a.parquet row 401: no text\n.*row 402: a zero byte in the text\n"):
        prepared([tmp_path / "a.parquet"], max_bad=1)
    assert b"".join(prepared([tmp_path / "a.parquet"], max_bad=2)).count(b"\0") == len(TEXTS)


NOISE = np.random.default_rng(0).bytes(10_000).hex().encode()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt.gz", b"no gzip"),
        ("a.txt.gz", gzip.compress(NOISE)[:-9]),
        ("a.txt.gz", gzip.compress(NOISE)[:5000] + b"\xff" * 9 + gzip.compress(NOISE)[5009:]),
        ("a.jsonl.gz", gzip.compress(json_lines(TEXTS))[:-9]),
        ("a.txt.zst", b"no zstd"),
        ("a.txt.zst", zstd(NOISE)[:-9]),
        ("a.parquet", b""),
        ("a.parquet", b"PAR1 no Parquet"),
        ("a.parquet", parquet(TEXTS)[:-20]),
        ("a.parquet", parquet(TEXTS).replace(b"text 1", b"tex\xff\xff1")[: 1 << 20].replace(b"id", b"\xff\xff")),
    ],
)
def test_files_that_are_not_whole_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    write(tmp_path, {name: content})
    with pytest.raises(UserError, match=rf"{name} cannot be read to its end: .*; download"):
        prepared([tmp_path / name])
    assert not (tmp_path / "prepared.h5").exists()


@pytest.mark.parametrize("name", ["a.gz", "a.zst"])
def test_what_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(formats, "UNPACKED_BYTES", 1 << 20)
    pack = gzip.compress if name == "a.gz" else zstd
    write(tmp_path, {name: pack(b"a" * (1 << 24))})
    with pytest.raises(UserError, match=rf"{name} expands to more than 1000 times its size.* --exclude"):
        prepared([tmp_path / name])


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "LINE_BYTES", 1000)
    write(tmp_path, {"a.jsonl": json_lines(["words" * 999])})
    with pytest.raises(UserError, match=r"a.jsonl line 1 has 1,000 bytes or more; are these JSON lines\?"):
        prepared([tmp_path / "a.jsonl"])


@pytest.mark.parametrize("name", ["a.parquet", "a.txt.zst"])
def test_without_pyarrow_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    write(tmp_path, {name: b""})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=rf"{name} is .* with pyarrow; pip install pyarrow"):
        prepared([tmp_path / name])


@pytest.mark.launch
@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.parquet"])
def test_memory_does_not_grow_with_the_records(tmp_path: Path, name: str) -> None:
    few, many = tmp_path / "few" / name, tmp_path / "many" / name
    texts = ["few words " * 100] * 2000
    for path, count in ((few, 1), (many, 15)):
        write(path.parent, {name: RECORDS[name](texts * count)})
    peaks = [peak_of(lambda path=path: prepare_text([path], tmp_path / "data.h5")) for path in (few, many)]
    assert peaks[1] - peaks[0] < 14 * 1000 * 2000 / 2, f"bytes: {peaks}"
