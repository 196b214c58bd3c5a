"""Where each byte of a rank's window lies: the header, the number of the newest complete version, then the slots."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

SLOTS = 3
"""Version v lies in slot v % SLOTS. The fewest with which a read shorter than one publish interval is never in vain."""

HEADER_NBYTES = 4096  # a page of its own, away from the bulk traffic
STAMP_NBYTES = 64  # in front of each shard: its version and step

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class Shard(NamedTuple):
    """Where a shard of a peer's snapshots is kept."""

    target: int
    """World rank whose window holds it."""
    stride: int
    """Bytes from one slot of that window to the next: stamp and shard."""

    def offset(self, version: int) -> int:
        """Of the slot of a version, in bytes."""
        return HEADER_NBYTES + version % SLOTS * self.stride


def window_nbytes(stride: int) -> int:
    """Length of a window."""
    return HEADER_NBYTES + SLOTS * stride


def stamp_of(slot: Bytes) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Version and step of the shard in a slot, int64 [2], in place."""
    return slot[:16].view(np.int64)


def total_nbytes(shards: list[Shard]) -> int:
    """What fetching these shards takes."""
    return sum(shard.stride for shard in shards)
