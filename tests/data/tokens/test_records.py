"""Blocks of records: all records in order, at their places in the file, whatever the size of the blocks."""

from pathlib import Path

import pytest

from hpcdistill.data.tokens import records
from hpcdistill.data.tokens.formats import kind_of
from hpcdistill.data.tokens.records import read_blocks
from texts import RECORDS, TEXTS, json_lines, parquet, write

pytestmark = pytest.mark.alone


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "BLOCK_BYTES", 300)
    monkeypatch.setattr(records, "BLOCK_ROWS", 7)


def texts_of(path: Path) -> tuple[int, list[bytes], list[str]]:
    """Return the number of blocks, the texts, and the lines on bad records."""
    blocks, bad = [*read_blocks(path, kind_of(path, None), None)], list[str]()
    texts = [text for block in blocks for text in block.texts(None, lambda text: None, bad.append)]
    return len(blocks), texts, bad


@pytest.mark.parametrize("name", RECORDS)
def test_blocks_have_each_record_once_in_order(tmp_path: Path, name: str) -> None:
    write(tmp_path, {name: RECORDS[name](TEXTS)})
    blocks, texts, bad = texts_of(tmp_path / name)
    assert blocks > 40
    assert texts == [text.encode() for text in TEXTS]
    assert not bad


def test_bad_records_are_named_by_their_place_in_the_file(tmp_path: Path) -> None:
    lines = json_lines(TEXTS).splitlines(keepends=True)
    lines[123] = b"no JSON\n"
    write(tmp_path, {"a.jsonl": b"".join(lines), "a.parquet": parquet([*TEXTS[:200], None, *TEXTS])})
    assert [line[: len("a.jsonl line 124:")] for line in texts_of(tmp_path / "a.jsonl")[2]] == ["a.jsonl line 124:"]
    assert texts_of(tmp_path / "a.parquet")[2] == ["a.parquet row 201: no text"]


def test_a_line_longer_than_a_block_is_whole(tmp_path: Path) -> None:
    texts = ["short", "long " * 1000, "short"]
    write(tmp_path, {"a.jsonl": json_lines(texts)})
    assert texts_of(tmp_path / "a.jsonl")[1] == [text.encode() for text in texts]
