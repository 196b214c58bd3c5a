"""Statistics of an exchange: bytes moved, by peer, and the CPU time of the thread that moves them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class TrafficStats:
    """Bytes moved since the exchange was opened; `+` adds the statistics of a group's ranks."""

    published: int = 0
    """Bytes made visible to peers. Nothing travels before a peer asks for them."""
    fetched: Counter[int] = field(default_factory=Counter)
    """Bytes read, by peer."""
    overwritten: Counter[int] = field(default_factory=Counter)
    """Bytes read and discarded because the peer wrote to the slot meanwhile, by peer."""
    outdated: Counter[int] = field(default_factory=Counter)
    """Bytes read and discarded because another rank of the group had a newer version, or because the group had
    switched to another peer; by peer."""
    thread_seconds: float = 0.0
    """CPU seconds of the communication thread."""

    @property
    def discarded(self) -> Counter[int]:
        """Bytes read and not used, by peer: `overwritten` and `outdated`."""
        return self.overwritten + self.outdated

    def __add__(self, other: TrafficStats) -> TrafficStats:
        return TrafficStats(
            self.published + other.published,
            self.fetched + other.fetched,
            self.overwritten + other.overwritten,
            self.outdated + other.outdated,
            self.thread_seconds + other.thread_seconds,
        )
