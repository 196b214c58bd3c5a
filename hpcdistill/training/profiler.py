"""Traces of training steps by torch.profiler."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from torch.profiler import profile

logger = logging.getLogger(__name__)


class StepProfiler:
    """Trace of the configured steps on one rank; a context manager, at whose end a trace that has begun is written.

    The trace is a compressed file for chrome://tracing or ui.perfetto.dev. It is kept in memory until it is written.

    Args:
        begin: first step of the trace, counted from 1.
        steps: number of steps; 0 for no trace.
        folder: folder of the trace; it is made.
    """

    def __init__(self, begin: int, steps: int, folder: Path) -> None:
        self._begin, self._end = begin, begin + steps
        self._folder = folder
        self._profile: profile | None = None
        self._first = self._next = 0

    def before(self, step: int) -> None:
        """Begin or end the trace where this is due, before the step with the number `step`, counted from 1."""
        self._next = step
        if self._profile is None and self._begin <= step < self._end:
            os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # it would log on standard error that it starts and stops
            self._profile, self._first = profile(), step
            self._profile.start()
        elif self._profile is not None and step == self._end:
            self._write()

    def __enter__(self) -> StepProfiler:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._profile is not None and kind is None:
            self._next += 1
            self._write()

    def _write(self) -> None:
        assert self._profile
        self._profile.stop()
        path = self._folder / f"steps-{self._first}-{self._next - 1}.json.gz"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._profile.export_chrome_trace(str(path))
        except (OSError, RuntimeError) as error:
            logger.warning(f"the trace {path} is not written: {error}")
        self._profile = None
