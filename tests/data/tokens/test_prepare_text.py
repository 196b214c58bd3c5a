"""Preparation of text: every byte is in one part, and warnings name what is left out."""

import os
import resource
import socket
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcdistill.cli.main import main
from hpcdistill.data.tokens.parts import is_chosen
from hpcdistill.data.tokens.prepare_text import prepare_text
from hpcdistill.errors import UserError
from texts import RECORDS, TEXTS, json_lines, prepared, stored, told, write

pytestmark = pytest.mark.alone

# Choice of the part


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


# Search for files


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
    convert = "UTF-16 files, which `iconv -f UTF-16 -t UTF-8` converts to text"
    assert told(capsys) == [
        f"passed over: links to folders: 1 ({folder}/around); "
        f"found again under another name: 3 ({folder}/a.txt, {folder}/b.txt, {folder}/c.txt); "
        f"dangling links: 2 ({folder}/gone, {folder}/loop); "
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
    with pytest.raises(UserError, match="pipe is neither a file nor a folder; write its output to a file"):
        prepared([tmp_path / "pipe"])


# Outputs and names


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
    """Write a folder whose name is not UTF-8, with files whose names are not."""
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
