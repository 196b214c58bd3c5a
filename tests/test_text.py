"""Preparing text: every byte in one part, from files of every kind, and nothing left out without a word."""

import gzip
import json
import os
import resource
import socket
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peak_memory import peak_of

from hpcdistill.cli import main
from hpcdistill.data import documents
from hpcdistill.data.store import TokenStore
from hpcdistill.data.text import prepare_text
from hpcdistill.data.text_parts import is_chosen
from hpcdistill.errors import UserError

TEXTS = [f"text {number}, naïve and\nin two lines" for number in range(400)]


def prepared(inputs: list[Path], **options: Any) -> list[bytes]:
    """The text of both parts, with the zero bytes that end documents."""
    output = inputs[0].parent / "prepared.h5"
    prepare_text(inputs, output, **options)
    return stored(output)


def stored(path: Path) -> list[bytes]:
    with TokenStore(path) as store:
        return [store.read(part, 0, store.size(part)).astype(np.uint8).tobytes() for part in ("train", "validation")]


def write(folder: Path, contents: dict[str, bytes]) -> Path:
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    return [line.removeprefix("hpcdistill: warning: ") for line in lines if "warning" in line]


# Which part


@settings(max_examples=30)  # each waits for the disk
@given(
    sizes=st.lists(st.integers(0, 40) | st.integers(0, 20_000), min_size=1, max_size=60).filter(lambda x: sum(x) >= 20),
    seed=st.integers(0, 999),
)
def test_every_byte_is_in_one_part_and_one_in_twenty_in_the_other(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], seed: int
) -> None:
    random = np.random.default_rng(seed)
    contents = {f"{seed}-{number}": random.integers(1, 256, size, np.uint8) for number, size in enumerate(sizes)}
    folder = write(tmp_path_factory.mktemp("text") / "in", {name: text.tobytes() for name, text in contents.items()})
    train, validation = prepared([folder])
    expected = Counter(np.concatenate([*contents.values()]).tolist())
    assert Counter(train) + Counter(validation) - Counter({0: 1 << 30}) == expected
    wholes = [text.tobytes() for text in contents.values()]
    for begin, end in ((train, validation), (validation, train)):
        for text in filter(None, begin.split(b"\0")):
            assert any(text in whole for whole in wholes), "documents run into each other"
        assert begin
        assert end
    share = len(validation.replace(b"\0", b"")) / sum(sizes)
    assert share == pytest.approx(0.05, abs=0.05 / 2 + 1 / sum(sizes))


def test_of_few_files_each_end_is_for_validation(tmp_path: Path) -> None:
    contents = {
        f"wiki.{part}.tokens": f"{part} ".encode() * count for part, count in (("a", 500), ("b", 50), ("c", 10))
    }
    write(tmp_path, contents)
    train, validation = prepared([tmp_path / name for name in contents])
    a, b, c = contents.values()
    assert train == a[:950] + b"\0" + b[:95] + b"\0" + c[:19] + b"\0"
    assert validation == a[950:] + b"\0" + b[95:] + b"\0" + c[19:] + b"\0"


def test_of_many_files_whole_ones_are_for_validation(tmp_path: Path) -> None:
    contents = {f"{number}.txt": b"%04d" % number for number in range(1000)}
    train, validation = prepared([write(tmp_path / "in", contents)])
    chosen = {text for name, text in contents.items() if is_chosen(name.encode())}
    assert set(validation.split(b"\0")[:-1]) == chosen
    assert set(train.split(b"\0")[:-1]) == set(contents.values()) - chosen


def test_one_huge_file_among_many_does_not_make_the_parts_uneven(tmp_path: Path) -> None:
    name = next(name for name in map(str, range(100)) if is_chosen(name.encode()))
    contents = {f"{number}": b"few words" for number in range(200)} | {name: b"many words " * 10_000}
    _, validation = prepared([write(tmp_path / "in", contents)])
    assert len(validation) / sum(map(len, contents.values())) == pytest.approx(0.05, abs=0.01)


def test_published_validation_files_are_that_part(tmp_path: Path) -> None:
    write(tmp_path, {"in/a.txt": b"some words", "in/b.txt": b"more words", "other.txt": b"validation"})
    inputs = tmp_path / "in"
    assert prepared([inputs], validation=[tmp_path / "other.txt"]) == [b"some words\0more words\0", b"validation\0"]


def test_validation_files_without_text_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": b"some words", "b.txt": b""})
    with pytest.raises(UserError, match=r"too little text .*'validation': 0} bytes; .* --input and --validation"):
        prepared([tmp_path / "a.txt"], validation=[tmp_path / "b.txt"])


def test_one_file_in_both_parts_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "in", {"a.txt": b"words" * 9, "b.txt": b"words"})
    (tmp_path / "link.txt").symlink_to(tmp_path / "in" / "b.txt")
    with pytest.raises(UserError, match=r"link.txt is in --input and in --validation; leave it out of one of them"):
        prepared([tmp_path / "in"], validation=[tmp_path / "link.txt"])


# What is found


def test_links_to_files_are_followed(tmp_path: Path) -> None:
    contents = {f"{number}.txt": b"words of file %d" % number for number in range(200)}
    real, mixed = write(tmp_path / "real", contents), write(tmp_path / "mixed", dict([*contents.items()][:100]))
    for name in [*contents][100:]:
        (mixed / name).symlink_to(Path("../real") / name)
    (tmp_path / "links").mkdir()
    for name in contents:
        (tmp_path / "links" / name).symlink_to(real / name)
    assert prepared([real]) == prepared([mixed]) == prepared([tmp_path / "links"])


def test_files_under_digests_are_read_by_the_names_of_the_links_to_them(tmp_path: Path) -> None:
    write(tmp_path / "in", {"blobs/0123456789": json_lines(TEXTS), "refs/main": b"digest"})
    (tmp_path / "in" / "snapshots").mkdir()
    (tmp_path / "in" / "snapshots" / "train.jsonl").symlink_to("../blobs/0123456789")
    assert b"".join(prepared([tmp_path / "in"])).count(b"\0") == len(TEXTS) + 1


def test_what_is_left_out_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(
        tmp_path / "in",
        {
            "a.txt": b"words " * 100,
            "binary": b"a\0b",
            "sub/icon.png": b"\x89PNG\r\n\x1a\n\0",
            "utf16.txt": "words".encode("utf-16"),
            "chinese.txt": "\ufeff文字".encode("utf-16-be"),
            "skipped/never.txt": b"\0",
        },
    )
    os.link(folder / "a.txt", folder / "b.txt")
    (folder / "c.txt").symlink_to("a.txt")
    (folder / "around").symlink_to(folder)
    (folder / "gone").symlink_to("nowhere")
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(Path(os.path.relpath(folder / "socket"))))
    prepare_text([folder, folder / "a.txt"], tmp_path / "data.h5", exclude=["skipped"])
    assert stored(tmp_path / "data.h5") == [b"words " * 95, b"words " * 5]
    convert = "UTF-16 files, of which `iconv -f UTF-16 -t UTF-8` makes text"
    assert told(capsys) == [
        f"passed over: links to folders: 1 ({folder}/around); "
        f"found again under another name: 3 ({folder}/a.txt, {folder}/b.txt, {folder}/c.txt); "
        f"links that lead nowhere: 2 ({folder}/gone, {folder}/loop); "
        f"pipes, sockets and devices: 2 ({folder}/pipe, {folder}/socket); "
        f"binary files: 2 ({folder}/binary, {folder}/sub/icon.png); "
        f"{convert}: 2 ({folder}/chinese.txt, {folder}/utf16.txt)"
    ]


def test_many_names_are_not_all_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    contents = {f"{number}.bin": b"\0" for number in range(1234)} | {"a.txt": b"words " * 100}
    prepare_text([write(tmp_path, contents)], tmp_path / "data.h5")
    names = ", ".join(f"{tmp_path}/{number}.bin" for number in (0, 1, 10))
    assert told(capsys) == [f"passed over: binary files: 1,234 ({names}, …)"]


def test_no_text_at_all_is_refused_with_the_reasons(tmp_path: Path) -> None:
    write(tmp_path / "in", {"a": b"\0", "b": b"\0"})
    with pytest.raises(UserError, match=r"there is no text in .*in; passed over: binary files: 2 \(.*a, .*b\); check"):
        prepared([tmp_path / "in"])


def test_an_input_that_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe is neither a file nor a folder; write what it gives to a file"):
        prepared([tmp_path / "pipe"])


# Of which kind


def json_lines(texts: list[str]) -> bytes:
    return b"".join(json.dumps({"id": 7, "text": text}).encode() + b"\n" for text in texts)


def parquet(texts: list[Any], kind: pa.DataType | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": range(len(texts)), "text": pa.array(texts, kind)}), sink, row_group_size=100)
    return bytes(sink.getvalue())


def zstd(content: bytes) -> bytes:
    """In two frames, as programs that work in parallel write them."""
    return b"".join(pa.compress(part, "zstd", asbytes=True) for part in (content[:99], content[99:]))


RECORDS: dict[str, Callable[[list[str]], bytes]] = {
    "a.jsonl": json_lines,
    "a.ndjson": json_lines,
    "a.json": json_lines,
    "a.JSONL": lambda texts: b"\xef\xbb\xbf" + json_lines(texts).replace(b"\n", b"\r\n\r\n").rstrip(),
    "a.jsonl.gz": lambda texts: gzip.compress(json_lines(texts)),
    "a.json.gz": lambda texts: gzip.compress(json_lines(texts[:100])) + gzip.compress(json_lines(texts[100:])),
    "a.jsonl.zst": lambda texts: zstd(json_lines(texts)),
    "a.parquet": parquet,
    "a.pq": lambda texts: parquet(texts, pa.large_string()),
    "A.PARQUET": lambda texts: parquet([text.encode() for text in texts]),
    "b.parquet": lambda texts: parquet(pa.array(texts).dictionary_encode()),
}


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
    with pytest.raises(UserError, match=rf"{name} cannot be read to its end: .*; fetch"):
        prepared([tmp_path / name])
    assert not (tmp_path / "prepared.h5").exists()


@pytest.mark.parametrize("name", ["a.gz", "a.zst"])
def test_what_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(documents, "UNPACKED_BYTES", 1 << 20)
    pack = gzip.compress if name == "a.gz" else zstd
    write(tmp_path, {name: pack(b"a" * (1 << 24))})
    with pytest.raises(UserError, match=rf"{name} unpacks to more than 1000 times its size.* --exclude"):
        prepared([tmp_path / name])


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "LINE_BYTES", 1000)
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


# Where it goes, and under which names


@pytest.mark.parametrize("output", ["file/data.h5", "/proc/data.h5"])
def test_an_output_that_cannot_be_written_is_told(tmp_path: Path, output: str) -> None:
    write(tmp_path, {"file": b"words " * 100})
    with pytest.raises(UserError, match=r"--output .*data.h5 cannot be written: .*; make room there, or"):
        prepare_text([tmp_path / "file"], tmp_path / output)


def test_a_disk_that_takes_no_more_is_told(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": b"words " * 100_000, "data.h5": b"what was there"})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        with pytest.raises(UserError, match=r"data.h5 cannot be written: .*File too large; make room there"):
            prepare_text([tmp_path / "a.txt"], tmp_path / "data.h5")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "data.h5").read_bytes() == b"what was there"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "data.h5"]


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    """A folder whose name is not UTF-8, with files whose names are not."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    for name, make in RECORDS.items():
        write(folder / os.fsdecode(b"\xff"), {os.fsdecode(b"caf\xe9-") + name: make(TEXTS)})
    write(folder, {os.fsdecode(b"caf\xe9.txt"): b"words " * 100, os.fsdecode(b"caf\xe9.bin"): b"\0"})
    return folder


def test_names_need_not_be_utf_8(strange: Path, capfd: pytest.CaptureFixture[str]) -> None:
    output = strange / os.fsdecode(b"\xff.h5")
    assert main(["prepare", "text", "--input", str(strange), "--output", str(output)]) == 0
    assert b"".join(stored(output)).count(b"\0") == len(RECORDS) * len(TEXTS) + 1
    assert "binary files: 1 (" in capfd.readouterr().err
