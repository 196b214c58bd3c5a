"""Pieces of a store: made by several processes, and kept on disk until the store is complete.

The pieces are in a folder beside the store, `FILE.h5.pieces-<digest of the input and options>`. A preparation that was
killed uses them when it is started again. The store is written from the pieces in order: it depends neither on kills
nor on the number of processes.
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
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import h5py

from hpcdistill.data.arrays import Array
from hpcdistill.data.prepare.split import VALIDATION_SHARE
from hpcdistill.errors import UserError
from hpcdistill.storage.hdf5 import atomic_file, text, write_checked
from hpcdistill.storage.hdf5_check import ERRORS, digest, require_whole

Item = TypeVar("Item")
Task = TypeVar("Task")
Result = TypeVar("Result")
Run = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
"""Function that calls a function for each of many tasks, and returns the results in order, as `map` does."""
Piece = dict[str, Array]
"""Arrays of a piece, by name. `validation`, bool, marks the rows or images of that part; others differ by kind."""


@contextmanager
def explain_write_errors(output: Path, more: str = "") -> Iterator[None]:
    """Turn an `OSError` of the block into a `UserError` with a remedy.

    Args:
        output: the file that is written.
        more: text to add to the remedy.

    Raises:
        UserError: the disk is full, or there can be no such file.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"--output {output} cannot be written: {error}; make room there, or choose another --output{more}"
        ) from None


@contextmanager
def pieces_folder(output: Path, *prepared: object) -> Iterator[Path]:
    """Make the folder for the pieces of `output`; remove it, and all others of this output, if the block succeeds.

    Args:
        output: the store.
        prepared: everything that the pieces depend on; pieces of other values are not used.

    Raises:
        UserError: the disk is full.
    """
    digest = hashlib.blake2b(repr(prepared).encode(), digest_size=8).hexdigest()
    folder = output.with_name(f"{output.name}.pieces-{digest}")
    with explain_write_errors(output, ". The same command continues from the finished pieces"):
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        for old in output.parent.glob(f"{glob.escape(output.name)}.pieces-{'[0-9a-f]' * 16}"):
            shutil.rmtree(old)


@contextmanager
def worker_processes(processes: int | None = None) -> Iterator[Run]:
    """Start processes for the block.

    Args:
        processes: number of processes; by default one for each core that this process may use.

    Yields:
        Function that calls a function, of the top level of a module, for each of many tasks in these processes, and
        yields the results in order. Few tasks are in progress at a time, so that memory is bounded for any number.

    Raises:
        UserError: `processes` is less than 1, or a process was killed.
    """
    if processes is None:
        processes = len(os.sched_getaffinity(0))
    if processes < 1:
        raise UserError(f"--processes {processes} must be at least 1")
    # Forked: a spawned process would import everything again.
    context = multiprocessing.get_context("fork")
    try:
        with ProcessPoolExecutor(processes, context, initializer=_follow_parent) as pool:
            yield lambda function, tasks: in_order((pool.submit(function, task) for task in tasks), processes + 1)
    except BrokenProcessPool:
        raise UserError(
            "a process was killed, perhaps as memory ran out; the same command continues from the finished pieces, and "
            "needs less memory with fewer --processes"
        ) from None


def make_pieces(
    folder: Path, make: Callable[[Task], Piece], tasks: Iterable[Task], processes: int | None = None
) -> Iterator[Path]:
    """Make the piece of each task in several processes, unless it exists; yield the files in order.

    Args:
        folder: folder of the pieces.
        make: function that makes a piece from a task; at the top level of a module, as it runs in other processes.
        tasks: arguments of `make`.
        processes: number of processes; see `worker_processes`.

    Raises:
        UserError: see `worker_processes`; also whatever `tasks` and `make` raise.
    """
    with worker_processes(processes) as run:
        numbered = ((folder / f"{number}.h5", task) for number, task in enumerate(tasks))
        yield from run(partial(_make, make), numbered)


def in_tasks(items: Iterable[Item], size: Callable[[Item], int], least: int) -> Iterator[list[Item]]:
    """Yield consecutive items in lists whose sizes add up to at least `least`, but for the last list."""
    task, total = list[Item](), 0
    for item in items:
        task.append(item)
        total += size(item)
        if total >= least:
            yield task
            task, total = [], 0
    if task:
        yield task


def in_order(started: Iterator[Future[Result]], ahead: int) -> Iterator[Result]:
    """Yield the results of futures in order, with `ahead` futures started before their results are needed."""
    waiting: deque[Future[Result]] = deque()
    for future in started:
        waiting.append(future)
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _follow_parent() -> None:
    """End this process when its parent is killed, or it would wait for tasks forever; leave Ctrl-C to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _make(make: Callable[[Task], Piece], numbered: tuple[Path, Task]) -> Path:
    path, task = numbered
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
        UserError: the piece is damaged.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            require_whole(file)
            if file.attrs["digest"] != digest(file).encode():
                raise ValueError("its digest does not fit its content")
            return tuple(file[name][()] for name in names)
    except ERRORS as error:
        raise UserError(
            f"{path} is damaged ({' '.join(str(error).split())}); remove the folder {path.parent}, and run the same "
            "command again"
        ) from None


def write_whole(output: Path, folder: Path, write: Callable[[Path], dict[str, int]], things: str) -> dict[str, int]:
    """Write the store into the folder of its pieces, then move it to `output`: a kill leaves no incomplete output.

    Args:
        output: the store, which appears only when it is complete.
        folder: folder of the pieces.
        write: function that writes the store to a path and returns the size of each part.
        things: name of what the sizes count, in the plural.

    Raises:
        UserError: a part is empty.
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
