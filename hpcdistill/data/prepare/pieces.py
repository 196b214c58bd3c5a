"""A preparation in pieces: made by several processes, kept on disk until the store is whole, made once only.

The pieces lie in a folder beside the store to be, `FILE.h5.pieces-<digest of what is prepared>`. A preparation that was
killed finds them there when it is started again. The store is then put together from them in order, so it does not
depend on how often it was killed, nor on the number of processes.
"""

from __future__ import annotations

import glob
import hashlib
import multiprocessing
import os
import shutil
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import h5py

from hpcdistill.data.arrays import Array
from hpcdistill.data.prepare.split import VALIDATION_SHARE
from hpcdistill.errors import UserError
from hpcdistill.storage.hdf5 import atomic_file, text, write_checked
from hpcdistill.storage.hdf5_check import ERRORS, digest, require_whole

Task = TypeVar("Task")
Result = TypeVar("Result")
Piece = dict[str, Array]
"""`validation`, bool, tells which rows or images belong to that part; the other arrays are its maker's affair."""


@contextmanager
def explained(output: Path, more: str = "") -> Iterator[None]:
    """Say what to do, and `more`, when `output` cannot be written.

    Raises:
        UserError: the disk takes no more, or there can be no such file.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"--output {output} cannot be written: {error}; make room there, or choose another --output{more}"
        ) from None


@contextmanager
def pieces_folder(output: Path, *prepared: object) -> Iterator[Path]:
    """The folder for the pieces of `output`; it goes, and others of the same output with it, when the block ends well.

    Args:
        output: the store to be.
        prepared: all that the pieces depend on; a preparation of something else uses none of them.

    Raises:
        UserError: the disk takes no more, or a process was killed.
    """
    digest = hashlib.blake2b(repr(prepared).encode(), digest_size=8).hexdigest()
    folder = output.with_name(f"{output.name}.pieces-{digest}")
    try:
        with explained(output, ". The same command goes on from what is done"):
            folder.mkdir(parents=True, exist_ok=True)
            yield folder
            for old in output.parent.glob(f"{glob.escape(output.name)}.pieces-{'[0-9a-f]' * 16}"):
                shutil.rmtree(old)
    except BrokenProcessPool:
        raise UserError(
            "a process was killed, as happens when memory runs out; the same command goes on from what is done, with "
            "fewer --processes in less memory"
        ) from None


def make_pieces(
    folder: Path, make: Callable[[Task], Piece], tasks: Iterable[Task], processes: int | None = None
) -> Iterator[Path]:
    """Make the piece of each task, unless it is there, in several processes; their files, in order.

    Few tasks are under way at a time, so memory stays bounded however many there are.

    Args:
        folder: where the pieces lie.
        make: a function of a module, as it runs in other processes.
        tasks: what it is given.
        processes: how many; by default one for each core this process may use.

    Raises:
        UserError: not a number of processes; and what `tasks` and `make` raise.
    """
    if processes is None:
        processes = len(os.sched_getaffinity(0))
    if processes < 1:
        raise UserError(f"--processes {processes} must be at least 1")
    # Forked: a new Python would have to import everything anew in each.
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(processes, context, initializer=_follow_parent) as pool:
        under_way = (pool.submit(_make, folder / f"{number}.h5", make, task) for number, task in enumerate(tasks))
        yield from in_order(under_way, processes + 1)


def in_order(started: Iterator[Future[Result]], ahead: int) -> Iterator[Result]:
    """Yield the results of futures, of which so many are started before they are asked for."""
    waiting: deque[Future[Result]] = deque()
    for future in started:
        waiting.append(future)
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _follow_parent() -> None:
    """Let this process end when its parent is killed, or it would wait for tasks for ever; Ctrl-C is the parent's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _make(path: Path, make: Callable[[Task], Piece], task: Task) -> Path:
    if not path.exists():
        piece = make(task)
        with atomic_file(path) as (file, _):
            for name, values in piece.items():
                write_checked(file, name, values)
            file.attrs["digest"] = text(digest(file))
    return path


def read_piece(path: Path, *names: str) -> tuple[Array, ...]:
    """Read the named arrays of a piece.

    Raises:
        UserError: it is damaged.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            require_whole(file)
            if file.attrs["digest"] != digest(file).encode():
                raise ValueError("its digest does not fit its content")
            return tuple(file[name][()] for name in names)
    except ERRORS as error:
        raise UserError(
            f"{path} is damaged ({' '.join(str(error).split())}); remove the folder {path.parent}, and give the same "
            "command again"
        ) from None


def write_whole(output: Path, folder: Path, write: Callable[[Path], dict[str, int]], things: str) -> dict[str, int]:
    """Write the store among its pieces, rather than beside the output, where a kill would leave a half.

    Args:
        output: the store, which appears whole or not at all.
        folder: where the pieces lie.
        write: writes it where it is told, and returns how many `things` each part has.
        things: what is in it.

    Raises:
        UserError: a part has none.
    """
    whole = folder / "whole.h5"
    sizes = write(whole)
    if not all(sizes.values()):
        raise UserError(
            f"too few {things} for a training and a validation part: {sizes}; about {VALIDATION_SHARE:.0%} are chosen "
            "for validation: prepare more"
        )
    whole.replace(output)
    return sizes
