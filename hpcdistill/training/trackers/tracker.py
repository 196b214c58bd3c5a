"""Interface of trackers."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import NamedTuple

from hpcdistill.storage.metrics import Record

logger = logging.getLogger(__name__)


class RunFacts(NamedTuple):
    """Facts by which a tracker knows a group's training again after a restart."""

    name: str
    """Name of the run's folder."""
    group: int
    identity: str
    """Text that is the same at each start of this training, and differs from that of all others."""
    step: int
    """Number of steps made before this start."""
    header: Record
    """Header of the metrics."""


class Tracker(ABC):
    """Copy of a group's metrics in another program. When it fails, records are lost, with a warning; the run goes on.

    Args:
        name: name of the program and place of the copy, for the warning.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._works = True

    def record(self, step: int, values: Record) -> None:
        """Record each number in `values`; nested ones are named "key/subkey"."""
        self._try(lambda: self._write(step, dict(_numbers(values))))

    def close(self) -> None:
        """Write what is pending."""
        self._try(self._close)

    @abstractmethod
    def _write(self, step: int, numbers: dict[str, float]) -> None:
        """Write the numbers of one step. Any exception ends the tracker."""

    @abstractmethod
    def _close(self) -> None:
        """Write what is pending, and free what the tracker holds."""

    def _try(self, action: Callable[[], None]) -> None:
        """Call `action`, unless one has failed: each attempt could wait for a server that no longer answers."""
        if not self._works:
            return
        try:
            action()
        except Exception as error:  # whatever another program raises
            self._works = False
            logger.warning(f"records are missing from {self._name} from now on: {error}")


def _numbers(values: Record, prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, list):
            value = dict(enumerate(value))
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{key}", value
