"""What the exchange costs: bytes moved, by peer, and the time of the thread that moves them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Ledger:
    """Bytes since the exchange was opened; `+` adds up those of a group's ranks."""

    published: int = 0
    """Made visible to peers; nothing travels before one of them asks."""
    fetched: Counter[int] = field(default_factory=Counter)
    """Read, by peer."""
    overwritten: Counter[int] = field(default_factory=Counter)
    """Read in vain, because the peer wrote to the slot meanwhile."""
    outdated: Counter[int] = field(default_factory=Counter)
    """Read in vain, because another rank of the group had a newer version, or the group had turned to another peer."""
    thread_seconds: float = 0.0
    """CPU time of the communication thread."""

    @property
    def wasted(self) -> Counter[int]:
        """Bytes read in vain, by peer."""
        return self.overwritten + self.outdated

    def __add__(self, other: Ledger) -> Ledger:
        return Ledger(
            self.published + other.published,
            self.fetched + other.fetched,
            self.overwritten + other.overwritten,
            self.outdated + other.outdated,
            self.thread_seconds + other.thread_seconds,
        )
