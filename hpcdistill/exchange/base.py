"""Interfaces of the exchange: the payload that a group publishes, the snapshot that peers get, the transport."""

from __future__ import annotations

import hashlib
import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch

from hpcdistill.exchange.traffic import TrafficStats


class Payload(ABC):
    """State that a group publishes, as bytes cut into one shard for each rank of the group."""

    @property
    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Properties that the payloads of all groups must share, by name; strings, numbers and lists of them."""

    @property
    def digest(self) -> str:
        """Digest of `facts`: equal for two payloads if and only if the bytes of one mean the same to the other."""
        return hashlib.blake2b(json.dumps(self.facts, sort_keys=True).encode(), digest_size=16).hexdigest()

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Device of the state, on which `encode` wants its memory."""

    @abstractmethod
    def nbytes(self, rank: int, size: int) -> int:
        """Return the length of shard `rank` of `size` in bytes: a multiple of 64, and the same for every step."""

    @abstractmethod
    def encode(self, rank: int, size: int, wire: torch.Tensor) -> None:
        """Write shard `rank` of `size` of the present state into `wire`.

        Args:
            rank: number of the shard.
            size: number of shards.
            wire: memory to fill, uint8 [nbytes(rank, size)], 16-byte aligned, on `device`.

        Raises:
            UserError: the state no longer has the shapes that it had when the payload was made.
        """


@dataclass(frozen=True)
class Snapshot:
    """State that a peer published after `step` steps."""

    peer: int
    step: int
    shards: list[torch.Tensor]
    """Bytes of each shard, uint8 on the host, as the peer's payload encoded them. The exchange reuses this memory once
    the next snapshot is asked for: asynchronous copies from it must be complete by then."""


class Exchange(ABC):
    """Transport that publishes a group's payload and collects its peers'. It never makes one group wait for another.

    Used by the training thread only. As a context manager it is freed at the end of the block, or abandoned when an
    exception leaves the block.

    Attributes:
        traffic: bytes moved so far by this rank.
    """

    def __init__(self) -> None:
        self.traffic = TrafficStats()
        self._closing = threading.Event()

    @abstractmethod
    def set_peers(self, peers: list[int]) -> None:
        """Fetch from these groups from now on; each call must name the same number of them.

        Collective over the group: all its ranks name the same peers after the same step.
        """

    @abstractmethod
    def publish(self, step: int) -> bool:
        """Publish the payload as it is after `step` steps; return False if this was skipped.

        It is skipped, and not waited for, while the transport is busy with the previous one. Collective over the group.

        Raises:
            UserError: the payload no longer has its shapes; on the ranks that encode a shard.
            RuntimeError: the exchange has been freed.
        """

    @abstractmethod
    def collect(self) -> Iterator[Snapshot]:
        """Yield the snapshots that have arrived since the last call.

        Collective over the group: all its ranks get the same snapshots in the same call.

        Raises:
            RuntimeError: the exchange has been freed.
        """

    @abstractmethod
    def free(self) -> None:
        """Release all resources. Collective over the groups of this world.

        Raises:
            RuntimeError: the exchange has been freed already.
        """

    @abstractmethod
    def abandon(self) -> None:
        """Stop communicating at once, because the job is about to be aborted: wait for no other rank, free nothing."""

    def __enter__(self) -> Exchange:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.free()
        else:
            self.abandon()

    def _require_open(self) -> None:
        if self._closing.is_set():
            raise RuntimeError("the exchange has been freed already; open a new one")
