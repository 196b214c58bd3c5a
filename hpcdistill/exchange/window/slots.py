"""Layout of a rank's window: the header, which is the number of the newest complete version, then the slots."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

SLOTS = 3
"""Number of slots; version v is in slot v % SLOTS. With fewer, a read that takes less than one exchange interval could
be overwritten."""

HEADER_NBYTES = 4096  # a separate page, away from the bulk traffic
STAMP_NBYTES = 64  # in front of each shard: its version and step

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class Shard(NamedTuple):
    """Place of a shard of a peer's snapshots."""

    target: int
    """World rank whose window holds it."""
    stride: int
    """Length of a slot of that window in bytes: stamp and shard."""

    def offset(self, version: int) -> int:
        """Return the byte offset of a version's slot."""
        return HEADER_NBYTES + version % SLOTS * self.stride


def window_nbytes(stride: int) -> int:
    """Return the length of a window in bytes."""
    return HEADER_NBYTES + SLOTS * stride


def stamp_of(slot: Bytes) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return a view of the stamp of a slot, int64 [2]: version and step."""
    return slot[:16].view(np.int64)


def total_nbytes(shards: list[Shard]) -> int:
    """Return the bytes to fetch for these shards."""
    return sum(shard.stride for shard in shards)
