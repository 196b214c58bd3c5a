"""Timers of the parts of a training step, such as reading and exchange, on the host or on a GPU."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

PARTS = ("data", "teachers", "exchange", "averaging")
"""Parts of a step that are measured; `compute` is the rest."""


class PartTimer(ABC):
    """Timer of the parts of steps."""

    @abstractmethod
    def mark(self) -> Any:
        """Return the present moment."""

    @abstractmethod
    def add(self, part: str, begin: Any, end: Any) -> None:
        """Add the time between two moments to `part`."""

    @abstractmethod
    def read(self) -> dict[str, float]:
        """Return the seconds of each part since the last call."""

    def time(self, part: str) -> AbstractContextManager[None]:
        """Return a context whose duration is added to `part`."""
        return _Span(self, part)


class _Span(AbstractContextManager[None]):
    """Span of a part of a step, as a context; a class, because a generator takes twice as long."""

    def __init__(self, timer: PartTimer, part: str) -> None:
        self._timer = timer
        self._part = part

    def __enter__(self) -> None:
        self._begin = self._timer.mark()

    def __exit__(self, *_: object) -> None:
        self._timer.add(self._part, self._begin, self._timer.mark())


def part_timer(device: torch.device) -> PartTimer:
    """Return the timer for a device."""
    return GpuTimer() if device.type == "cuda" else HostTimer()


class HostTimer(PartTimer):
    """Timer by the host's clock."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)

    def mark(self) -> float:
        """See `PartTimer`."""
        return time.perf_counter()

    def add(self, part: str, begin: float, end: float) -> None:
        """See `PartTimer`."""
        self._seconds[part] += end - begin

    def read(self) -> dict[str, float]:
        """See `PartTimer`."""
        seconds, self._seconds = dict(self._seconds), defaultdict(float)
        return seconds


class GpuTimer(PartTimer):
    """Timer by events in the current stream of a GPU, for a host that runs ahead of it.

    A part lasts from the end of the work before it to the end of its own: the host's time counts where the GPU waits
    for it. No call waits for the GPU: `read` is meant for a host that has just read a result of the last step.

    Args:
        event: function that makes an event.
    """

    def __init__(self, event: Callable[[], Any] = lambda: torch.cuda.Event(enable_timing=True)) -> None:
        self._event = event
        self._spans: list[tuple[str, Any, Any]] = []

    def mark(self) -> Any:
        """See `PartTimer`; the moment is an event."""
        event = self._event()
        event.record()
        return event

    def add(self, part: str, begin: Any, end: Any) -> None:
        """See `PartTimer`."""
        self._spans.append((part, begin, end))

    def read(self) -> dict[str, float]:
        """See `PartTimer`; what the GPU has not reached is left to the next call."""
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
