"""Whom a group learns from. Its traffic and its memory grow with their number, not with that of all groups."""

from __future__ import annotations


def peers_of(topology: str, group: int, groups: int) -> list[int]:
    """The groups whose snapshots `group` of `groups` fetches.

    Args:
        topology: "all" others; "ring": the next one, so that knowledge goes round; "pairs": groups 0 and 1 learn from
            each other, 2 and 3, and so on, which takes an even number of groups.
        group: which group asks.
        groups: how many there are.
    """
    if topology == "ring":
        return [(group + 1) % groups]
    if topology == "pairs":
        return [group ^ 1]
    return [peer for peer in range(groups) if peer != group]
