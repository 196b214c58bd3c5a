"""Pieces: each is made once, and a kill at any time changes nothing in the store."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from hpcdistill.data.prepare.pieces import Piece, make_pieces, pieces_folder, read_piece
from hpcdistill.data.rows import join, prepare_synthetic
from hpcdistill.data.rows.prepare_synthetic import prepare_clicks
from hpcdistill.data.rows.store import Rows
from hpcdistill.errors import UserError
from killed_writer import kill_at_random

pytestmark = pytest.mark.launch


def logged(task: tuple[Path, int]) -> Piece:
    """Make a piece with a number, and log it in a file."""
    log, number = task
    with log.open("a") as file:
        file.write(f"{number}\n")
    return {"number": np.array(number)}


def die(_: int) -> Piece:
    os._exit(9)


def test_pieces_come_in_order_and_are_made_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for count in (5, 20):
        paths = list(make_pieces(tmp_path, logged, ((log, number) for number in range(count)), processes=3))
        assert [int(read_piece(path, "number")[0]) for path in paths] == list(range(count))
        assert sorted(map(int, log.read_text().split())) == list(range(count))


def assorted(_: int) -> Piece:
    """Make a piece with arrays of all kinds; those of several chunks are larger than a megabyte."""
    return {
        "number": np.array(3),
        "empty": np.zeros((0, 2)),
        "names": np.array([b"a", b"long"]),
        "mask": np.array([True, False]),
        "wide": np.arange(600_000).reshape(-1, 3),
    }


def test_pieces_come_back_exactly_or_not_at_all(tmp_path: Path) -> None:
    (path,) = make_pieces(tmp_path, assorted, [0], processes=1)
    expected = assorted(0)
    for name, values in zip(expected, read_piece(path, *expected), strict=True):
        assert values.dtype == expected[name].dtype
        assert np.array_equal(values, expected[name])
    content, random = path.read_bytes(), Random(0)
    places = [content.index(np.array(3).tobytes()), *(random.randrange(len(content)) for _ in range(50))]
    for place in places:
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(UserError, match=r"0\.h5 is damaged .* remove the folder .* the same command again"):
            read_piece(path, *expected)


def test_few_tasks_are_under_way(tmp_path: Path) -> None:
    asked = 0

    def tasks() -> Iterator[tuple[Path, int]]:
        nonlocal asked
        for number in range(50):
            asked += 1
            yield tmp_path / "log", number

    for done, _ in enumerate(make_pieces(tmp_path, logged, tasks(), processes=2)):
        assert asked <= done + 4


def test_the_folder_goes_with_all_older_ones_of_the_same_output_only(tmp_path: Path) -> None:
    output, others = tmp_path / "[a].h5", [tmp_path / "[a].h5.pieces-mine", tmp_path / "a.h5.pieces-0123456789abcdef"]
    for other in others:
        other.mkdir()
    with pytest.raises(UserError, match="bad"), pieces_folder(output, 1) as first:
        raise UserError("bad")
    assert first.exists()
    with pieces_folder(output, 2) as second:
        assert first != second
    assert sorted(tmp_path.iterdir()) == sorted(others)


def test_a_process_that_is_killed_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a process was killed"), pieces_folder(tmp_path / "data.h5") as folder:
        list(make_pieces(folder, die, [1], processes=1))


def test_an_output_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--output .*data.h5 cannot be written: .*choose another --output"):
        prepare_clicks(tmp_path / "file" / "data.h5", 10)


def test_a_preparation_killed_again_and_again_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_synthetic, "PIECE_ROWS", 1000)
    whole, killed, random = tmp_path / "whole.h5", tmp_path / "killed.h5", Random(0)
    prepare_clicks(whole, 10_000, processes=2)

    def made() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in tmp_path.glob("killed.h5.pieces-*/[0-9]*.h5")}

    before: dict[Path, int] = {}
    stopped = tmp_path / "stopped"
    for begun in (lambda: len(made()) >= 1, lambda: len(made()) >= 5, stopped.exists):
        kill_at_random(lambda: begin(killed, stopped), random, begun)
        assert not killed.exists()
        assert before.items() <= made().items(), "a finished piece was made again"
        before = made()
        wait_until_gone(int((tmp_path / "processes").read_text()))
    prepare_clicks(killed, 10_000, processes=1)
    assert killed.read_bytes() == whole.read_bytes()
    assert sorted(tmp_path.iterdir()) == [killed, tmp_path / "processes", stopped, whole]


def begin(output: Path, stopped: Path) -> None:
    """Prepare in a new process group, until half of the store is written."""
    os.setpgid(0, 0)
    (output.parent / "processes").write_text(str(os.getpgid(0)))
    by_part = join._by_part

    def half(*args: Any) -> Iterator[tuple[str, Rows]]:
        yield from islice(by_part(*args), 10)
        stopped.touch()
        os.kill(os.getpid(), signal.SIGSTOP)

    join._by_part = half
    prepare_clicks(output, 10_000, processes=2)


def wait_until_gone(group: int) -> None:
    """Wait for the processes whose parent was killed to end by themselves; bounded by the test's timeout."""
    with contextlib.suppress(ProcessLookupError):
        while True:
            os.killpg(group, 0)
            time.sleep(1e-3)
