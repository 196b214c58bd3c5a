"""Triton kernels of a test module, compiled in several processes before its tests run on a GPU.

The tests of the module run twice. First in several processes, each of which compiles its share of the kernels and
launches none: there, outputs are not written, and comparisons are left out. Triton keeps the compiled kernels in its
cache on the disk, where the second run finds them.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any
from unittest import mock
from zlib import crc32

import pytest
import torch
from torch import Tensor

TIMEOUT = pytest.mark.timeout(600)
"""Mark of tests of kernels, whose first call compiles them."""

SHARE = "COMPILE_AHEAD_SHARE"
"""Environment variable of a process that compiles: its number and the number of processes, such as 2/16."""

SECONDS = 120
"""Time for all processes to compile; kernels that they have not reached are compiled by the tests."""


@contextmanager
def compiled_ahead(request: pytest.FixtureRequest, kernels: Sequence[Any]) -> Iterator[None]:
    """Compile `kernels`, functions of Triton, for all launches of the module's tests; without a GPU do nothing."""
    with ExitStack() as stack:
        if share := os.environ.get(SHARE):
            number, count = map(int, share.split("/"))
            stack.enter_context(mock.patch.object(torch.testing, "assert_close"))
            for kernel in kernels:
                stack.enter_context(mock.patch.object(kernel, "run", compiling(kernel.run, number, count)))
        elif torch.cuda.is_available():
            items = [item for item in request.session.items if item.path == request.path]
            run_shares([item.nodeid for item in items if not item.get_closest_marker("launch")])
        yield


def compiling(run: Callable[..., Any], number: int, count: int) -> Callable[..., None]:
    """Return a function in place of a kernel's `run`, which compiles share `number` of `count` and launches nothing."""
    seen: set[str] = set()

    def run_without_launch(*args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        key = repr((specialization(args), sorted(options.items())))
        if key not in seen and crc32(key.encode()) % count == number:
            seen.add(key)
            run(*args, grid=grid, warmup=True, **options)

    return run_without_launch


def specialization(argument: Any) -> Any:
    """Return the properties of an argument for which Triton compiles a kernel of its own."""
    if isinstance(argument, Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0
    if isinstance(argument, tuple):
        return tuple(map(specialization, argument))
    if isinstance(argument, int) and not isinstance(argument, bool):
        return argument == 1, argument % 16 == 0, abs(argument) < 2**31
    return type(argument)


def run_shares(tests: Sequence[str]) -> None:
    """Run `tests` in several processes, each of which compiles a share of the kernels; ignore failures of tests."""
    count = min(16, len(os.sched_getaffinity(0)))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    end = time.monotonic() + SECONDS
    processes = [
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {SHARE: f"{number}/{count}", "OMP_NUM_THREADS": "1"},
        )
        for number in range(count)
    ]
    try:
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(0, end - time.monotonic()))
    finally:
        for process in processes:
            process.kill()
            process.wait()
