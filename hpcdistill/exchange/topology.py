"""Whom a group learns from. Its traffic and its memory grow with their number, not with that of all groups."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Topology:
    """The network of one group.

    Args:
        name: "all" others; "ring": the next one, so that knowledge goes round; "pairs": groups 0 and 1 learn from
            each other, 2 and 3, and so on, which takes an even number of groups; "k-random": `degree` others, drawn
            anew for each exchange interval.
        group: which group asks.
        groups: how many there are.
        degree: how many peers "k-random" draws.
        seed: of the draws.
    """

    name: str
    group: int
    groups: int
    degree: int = 1
    seed: int = 0

    def peers(self, interval: int) -> list[int]:
        """The groups whose snapshots to fetch during an exchange interval, by number; always equally many."""
        if self.name == "ring":
            return [(self.group + 1) % self.groups]
        if self.name == "pairs":
            return [self.group ^ 1]
        others = [peer for peer in range(self.groups) if peer != self.group]
        if self.name == "k-random":
            return sorted(random.Random(f"{self.seed} {self.group} {interval}").sample(others, self.degree))
        return others
