"""Topology of the exchange: the peers that a group learns from.

Traffic and memory grow with their number, not with the number of groups.
"""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Topology:
    """Peers of one group.

    Args:
        name: "all": all other groups; "ring": the next group; "pairs": groups 0 and 1 learn from each other, 2 and 3,
            and so on, for an even number of groups; "k-random": `degree` other groups, drawn anew for each exchange
            interval.
        group: the group whose peers these are.
        groups: number of groups.
        degree: number of peers that "k-random" draws.
        seed: seed of the draws.
    """

    name: str
    group: int
    groups: int
    degree: int = 1
    seed: int = 0

    def peers(self, interval: int) -> list[int]:
        """Return the numbers of the peers in an exchange interval; always the same number of them."""
        if self.name == "ring":
            return [(self.group + 1) % self.groups]
        if self.name == "pairs":
            return [self.group ^ 1]
        others = [peer for peer in range(self.groups) if peer != self.group]
        if self.name == "k-random":
            return sorted(random.Random(f"{self.seed} {self.group} {interval}").sample(others, self.degree))
        return others
