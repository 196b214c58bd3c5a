"""Damage each kind of file in thousands of ways, and check the reaction of a program that reads it.

    python tools/fuzz_files.py [--tries N] [--kinds KIND ...] [--json FILE]

The tool writes the files. Another process reads all of each damaged file. It may refuse the file with one line
(`UserError`), or read the same data as before, if the damaged bytes have no meaning. Everything else is a fault: other
data without an error, another exception, the end of the process by a signal, or no end within 30 seconds. The first
fault of each sort is printed, and the exit code is 1.
"""

import argparse
import hashlib
import json
import os
import pickle
import secrets
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np
import torch

from hpcdistill.data.images.store import ImageStore, Kind, write_images
from hpcdistill.data.rows.store import Fields, Rows, RowStore, write_rows
from hpcdistill.data.store import PARTS
from hpcdistill.data.tokens.store import TokenStore, write_store
from hpcdistill.errors import UserError
from hpcdistill.reports.tables import aligned
from hpcdistill.storage.state_file import load_state, save_state
from hpcdistill.tasks.registry import open_task

SECONDS = 30
FILES_PER_PROCESS = 50  # so that forks do not dominate the time
REFUSED, SAME, DIFFERENT, EXCEPTION, CRASH, HANG = "refused", "same", "DIFFERENT", "EXCEPTION", "CRASH", "HANG"
OUTCOMES = (REFUSED, SAME, DIFFERENT, EXCEPTION, CRASH, HANG)
Outcome = tuple[str, str]
"""One of `OUTCOMES`, with a digest of the data or the error."""


# Files


@dataclass(frozen=True)
class Fuzzed:
    """Kind of file: functions that write one of a few hundred kilobytes, and read all of it."""

    make: Callable[[Path], Any]
    read: Callable[[Path], Any]


def make_tokens(path: Path) -> None:
    """Write a token store, of several chunks in each part."""
    write_store(path, [("train", Random(0).randbytes(150_000)), ("validation", Random(1).randbytes(70_000))], "random")


def make_rows(path: Path) -> None:
    """Write a store of rows, of several chunks in each part."""
    rng, fields = np.random.default_rng(0), Fields(["a", "b"], {"c": 100, "d": 7})
    pieces = []
    for part, count in zip(PARTS, (5000, 1500), strict=True):
        ids = rng.integers([100, 7], size=(count, 2), dtype=np.int32)
        rows = Rows(rng.random((count, 2), np.float32), ids, rng.integers(2, size=count, dtype=np.uint8))
        pieces.append((part, rows))
    write_rows(path, pieces, fields, "random", dict.fromkeys(PARTS, 0.5))


def make_arrays(path: Path) -> None:
    """Write a store of images as arrays."""
    shape, rng = (3, 16, 16), np.random.default_rng(0)
    pictures = rng.integers(256, size=(200, *shape), dtype=np.uint8)
    kind = Kind(["cat", "dog"], shape, [127.5] * 3, [74.0] * 3)
    write_images(path, [(part, pictures, rng.integers(2, size=200)) for part in PARTS], kind, "random")


def make_pictures(path: Path) -> None:
    """Write a store of encoded images, here of random bytes, as they are not decoded."""
    random, labels = Random(0), np.random.default_rng(0).integers(2, size=200)
    pictures = [random.randbytes(random.randrange(2000)) for _ in labels]
    write_images(path, [(part, pictures, labels) for part in PARTS], Kind(["cat", "dog"], (), [0.0] * 3, [1.0] * 3), "")


def make_checkpoint(path: Path) -> None:
    """Write a checkpoint like that of a small training."""
    model = torch.nn.Sequential(torch.nn.Linear(100, 100), torch.nn.BatchNorm1d(100))
    moments = {str(index): {"step": 1, "exp_avg": torch.randn(100, 100)} for index in range(4)}
    state = {"step": 7, "config": {"model": {"name": "dnn"}}, "model": model.state_dict(), "optimizer": moments}
    save_state(path, "checkpoint", {"owner": {"groups": 2}, "state": state})


def make_snapshot(path: Path) -> None:
    """Write a snapshot like that of a group."""
    wire = torch.randint(256, (200_000,), dtype=torch.uint8)
    save_state(path, "snapshot", {"step": 7, "wire": wire, "codec": "fp32", "tensors": ["a [3] float32"] * 50})


def read_store(path: Path) -> Iterator[Any]:
    """Yield all that a training, an evaluation and a report read from a store."""
    with open_task(path, warns=False).store as store:
        yield type(store).__name__, store.source, store.identity
        for part in PARTS:
            size = store.size(part)
            assert size is not None, "a store knows its size"
            yield size
            if isinstance(store, TokenStore):
                yield store.vocabulary, store.bytes_per_token(part), store.read(part, 0, size)
            elif isinstance(store, RowStore):
                yield store.fields, store.bayes_log_loss(part), store.read(part, 0, size)
            elif isinstance(store, ImageStore):
                yield store.kind, store.read(part, np.arange(size))


STORES = {"tokens": make_tokens, "rows": make_rows, "images, arrays": make_arrays, "images, encoded": make_pictures}
KINDS = {name: Fuzzed(make, lambda path: list(read_store(path))) for name, make in STORES.items()} | {
    "checkpoint": Fuzzed(make_checkpoint, lambda path: load_state(path, "checkpoint")),
    "snapshot": Fuzzed(make_snapshot, lambda path: load_state(path, "snapshot")),
}


# Damage


def structure(path: Path) -> list[int]:
    """Return the offsets of all bytes outside the datasets' content: HDF5's structures, attributes, a user block."""
    is_content = np.zeros(path.stat().st_size, bool)

    def note(_: str, item: h5py.HLObject) -> None:
        if isinstance(item, h5py.Dataset) and item.chunks:
            for chunk in (item.id.get_chunk_info(number) for number in range(item.id.get_num_chunks())):
                is_content[chunk.byte_offset : chunk.byte_offset + chunk.size] = True
        elif isinstance(item, h5py.Dataset) and item.size:
            is_content[item.id.get_offset() : item.id.get_offset() + item.nbytes] = True

    with h5py.File(path) as file:
        file.visititems(note)
    places: list[int] = np.flatnonzero(~is_content).tolist()
    return places


def flipped(content: bytes, place: int, random: Random) -> bytes:
    """Return the content with one random bit of the byte at `place` changed."""
    return content[:place] + bytes([content[place] ^ 1 << random.randrange(8)]) + content[place + 1 :]


def torn(content: bytes, places: list[int], random: Random) -> bytes:
    """Return the content truncated, or with some bytes removed, zeroed, randomized, repeated or inserted.

    Half of all damage begins in the structure.
    """
    begin = random.choice(places) if random.random() < 0.5 else random.randrange(len(content))
    length = random.choice((1, 8, 512, 4096))
    before, lost, after = content[:begin], content[begin : begin + length], content[begin + length :]
    return random.choice(
        (
            before,
            before + after,
            before + bytes(len(lost)) + after,
            before + random.randbytes(len(lost)) + after,
            before + lost + lost + after,
            before + random.randbytes(length) + lost + after,
        )
    )


def damaged(content: bytes, places: list[int], damage: str, random: Random) -> bytes:
    """Return the content with one of `DAMAGES`."""
    if damage == "torn":
        return torn(content, places, random)
    place = random.choice(places) if damage == "bit of the structure" else random.randrange(len(content))
    return flipped(content, place, random)


DAMAGES = ("bit", "bit of the structure", "torn")


# Reading


def outcomes(read: Callable[[Path], Any], contents: Sequence[Callable[[], bytes]], folder: Path) -> Iterator[Outcome]:
    """Yield the outcome of reading a file with each of these contents in another process."""
    done = 0
    while done < len(contents):
        receive, send = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(receive)
            _read_and_exit(read, contents[done : done + FILES_PER_PROCESS], folder, send)
        os.close(send)
        with os.fdopen(receive, "rb") as pipe, suppress(EOFError):  # the process has ended
            while True:
                yield pickle.load(pipe)
                done += 1
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            yield (HANG, "") if number == signal.SIGALRM else (CRASH, signal.Signals(number).name)
            done += 1


def _read_and_exit(
    read: Callable[[Path], Any], contents: Sequence[Callable[[], bytes]], folder: Path, send: int
) -> None:
    with os.fdopen(send, "wb") as pipe:
        for content in contents:
            path = folder / f"{secrets.token_hex(8)}.h5"  # a new name: HDF5 may still have the last file open
            path.write_bytes(content())
            signal.alarm(SECONDS)
            pickle.dump(_outcome(read, path), pipe)
            pipe.flush()
            path.unlink()
    os._exit(0)


def _outcome(read: Callable[[Path], Any], path: Path) -> Outcome:
    try:
        return SAME, fingerprint(read(path))
    except UserError as error:
        return REFUSED, str(error)
    except BaseException:
        return EXCEPTION, traceback.format_exc()


def fingerprint(value: Any) -> str:
    """Return a digest that is equal for equal values."""
    if isinstance(value, torch.Tensor):
        value = value.reshape(-1).view(torch.uint8).numpy() if value.numel() else ()
    if isinstance(value, np.ndarray):
        value = str(value.dtype), value.shape, hashlib.blake2b(np.ascontiguousarray(value).data).digest()
    elif isinstance(value, dict):
        value = sorted((key, fingerprint(item)) for key, item in value.items())
    elif isinstance(value, list | tuple):
        value = [fingerprint(item) for item in value]
    return hashlib.blake2b(repr(value).encode(), digest_size=16).hexdigest()


def fuzz(kind: str, tries: int, folder: Path) -> Iterator[tuple[str, Counter[str]]]:
    """Yield the number of each outcome of `tries` damaged files of this kind, for each of `DAMAGES`."""
    path, read = folder / "file.h5", KINDS[kind].read
    KINDS[kind].make(path)
    content, places = path.read_bytes(), structure(path)
    (expected,) = outcomes(read, [lambda: content], folder)
    assert expected[0] == SAME, expected[1]
    for damage in DAMAGES:
        tally: Counter[str] = Counter()
        seeds = [Random(f"{kind} {damage} {number}") for number in range(tries)]
        contents = [partial(damaged, content, places, damage, seed) for seed in seeds]
        for number, (outcome, detail) in enumerate(outcomes(read, contents, folder)):
            if outcome == SAME and detail != expected[1]:
                outcome = DIFFERENT
            if outcome not in (REFUSED, SAME) and not tally[outcome]:
                print(f"{kind}, {damage} {number}: {outcome}\n{detail}", file=sys.stderr)
            tally[outcome] += 1
        yield damage, tally


def main() -> int:
    """Fuzz, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument(
        "--tries", type=int, default=2000, metavar="N", help="number of damaged files of each kind and damage"
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table to this file")
    options = parser.parse_args()
    torch.manual_seed(0)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.kinds:
            found += [(kind, damage, tally) for damage, tally in fuzz(kind, options.tries, Path(folder))]
    rows = [(kind, damage, *(str(tally[outcome]) for outcome in OUTCOMES)) for kind, damage, tally in found]
    print("\n".join(aligned([("file", "damage", *OUTCOMES), *rows])))
    if options.json:
        options.json.write_text(json.dumps([{"file": k, "damage": d, **t} for k, d, t in found], indent=2) + "\n")
    return int(any(tally[outcome] for _, _, tally in found for outcome in OUTCOMES[2:]))


if __name__ == "__main__":
    sys.exit(main())
