"""Timers of the parts of a training step, such as reading and exchange, on the host or on a GPU."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch

PARTS = ("data", "teachers", "exchange", "averaging")
"""Parts of a step that are measured; `compute` is the rest."""


class PartTimer(Protocol):
    """Timer of the parts of steps."""

    def time(self, part: str) -> AbstractContextManager[None]:
        """Return a context whose duration is added to `part`."""

    def read(self) -> dict[str, float]:
        """Return the seconds of each part since the last call."""


def part_timer(device: torch.device) -> PartTimer:
    """Return the timer for a device."""
    return GpuTimer() if device.type == "cuda" else HostTimer()


class HostTimer:
    """Timer by the host's clock; see `PartTimer`."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        """See `PartTimer`."""
        begin = time.perf_counter()
        yield
        self._seconds[part] += time.perf_counter() - begin

    def read(self) -> dict[str, float]:
        """See `PartTimer`."""
        seconds, self._seconds = dict(self._seconds), defaultdict(float)
        return seconds


class GpuTimer:
    """Timer by events in the current stream of a GPU, for a host that runs ahead of it; see `PartTimer`.

    A part lasts from the end of the work before it to the end of its own: the host's time counts where the GPU waits
    for it. `read` waits for nothing: call it after the host has read a result of the last step.

    Args:
        event: function that makes an event.
    """

    def __init__(self, event: Callable[[], Any] = lambda: torch.cuda.Event(enable_timing=True)) -> None:
        self._event = event
        self._spans: list[tuple[str, Any, Any]] = []

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        """See `PartTimer`."""
        begin, end = self._event(), self._event()
        begin.record()
        yield
        end.record()
        self._spans.append((part, begin, end))

    def read(self) -> dict[str, float]:
        """See `PartTimer`; spans that the GPU has not reached are kept for the next call."""
        seconds: dict[str, float] = defaultdict(float)
        pending = []
        for part, begin, end in self._spans:
            if end.query():
                seconds[part] += begin.elapsed_time(end) / 1000
            else:
                pending.append((part, begin, end))
        self._spans = pending
        return dict(seconds)


def split_time(seconds: float, parts: dict[str, float]) -> dict[str, float]:
    """Return the seconds of each part of `seconds`, with `compute` for the rest; their sum is `seconds`.

    Clocks of a GPU and its host differ: parts that are together longer than `seconds` are shortened.
    """
    measured = {part: parts.get(part, 0.0) for part in PARTS}
    total = sum(measured.values())
    if total > seconds:
        measured = {part: duration * seconds / total for part, duration in measured.items()}
    return measured | {"compute": max(0.0, seconds - total)}
