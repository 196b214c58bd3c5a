"""Texts in files of every format, and the stores prepared from them."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hpcdistill.data.tokens.prepare_text import prepare_text
from hpcdistill.data.tokens.store import TokenStore

TEXTS = [f"text {number}, naïve and\nin two lines" for number in range(400)]


def prepared(inputs: list[Path], **options: Any) -> list[bytes]:
    """Prepare a store; return the text of both parts, with the zero bytes that end documents."""
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


def json_lines(texts: list[str]) -> bytes:
    return b"".join(json.dumps({"id": 7, "text": text}).encode() + b"\n" for text in texts)


def parquet(texts: list[Any], kind: pa.DataType | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": range(len(texts)), "text": pa.array(texts, kind)}), sink, row_group_size=100)
    return bytes(sink.getvalue())


def zstd(content: bytes) -> bytes:
    """Compress in two frames, as parallel compressors do."""
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
