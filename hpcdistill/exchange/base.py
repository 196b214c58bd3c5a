"""How a group's snapshots reach the other groups.

A transport publishes this group's weights and collects its peers', and never makes one group wait for
another. `window` carries them inside one MPI world; `files` between jobs that share only a filesystem.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import nn

from hpcdistill.config.schema import Config
from hpcdistill.distributed.groups import Groups
from hpcdistill.exchange.codec import Packing
from hpcdistill.exchange.layout import Layout
from hpcdistill.exchange.topology import Topology
from hpcdistill.exchange.traffic import Ledger


@dataclass(frozen=True)
class Snapshot:
    """A peer's model as it was at `step`."""

    peer: int
    step: int
    layout: Layout
    shards: list[tuple[Packing, torch.Tensor]]
    """How each shard is packed, and its bytes; valid until the exchange is asked for the next snapshot."""

    def load(self, model: nn.Module) -> None:
        """Give `model` the snapshot's parameters and buffers."""
        tensors = self.layout.tensors(model)
        for packing, wire in self.shards:
            packing.decode(wire, tensors)


class Exchange(ABC):
    """What every transport offers. Used by the training thread only; a context manager that frees on exit.

    Attributes:
        ledger: the bytes moved so far, by this rank.
    """

    def __init__(self) -> None:
        self.ledger = Ledger()
        self._closing = threading.Event()

    @abstractmethod
    def learn_from(self, peers: list[int]) -> None:
        """From now on fetch what these groups publish; the same number of them in each call.

        Collective over the group: all its ranks turn to the same peers after the same step.
        """

    @abstractmethod
    def publish(self, step: int) -> bool:
        """Offer the model as it is now, after `step` steps, to all peers; False when it was skipped.

        It is skipped, rather than waited for, when the transport is still busy with the previous one. Collective
        over the group.

        Raises:
            UserError: a tensor of the model has changed its shape or dtype.
            RuntimeError: the exchange has been freed.
        """

    @abstractmethod
    def collect(self) -> Iterator[Snapshot]:
        """New snapshots since the last call; collective over the group.

        All ranks of a group receive the same snapshots in the same call.

        Raises:
            RuntimeError: the exchange has been freed.
        """

    @abstractmethod
    def free(self) -> None:
        """Let go of all that the exchange holds; collective over the groups of this world.

        Raises:
            RuntimeError: it has been freed already.
        """

    @abstractmethod
    def abandon(self) -> None:
        """Stop communicating at once, because the job is about to be aborted: waits for nobody, frees nothing."""

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


class NoExchange(Exchange):
    """The `Exchange` of groups that do not teach each other."""

    def learn_from(self, peers: list[int]) -> None:
        """Nobody to hear of."""

    def publish(self, step: int) -> bool:
        """Nobody to publish to."""
        return False

    def collect(self) -> Iterator[Snapshot]:
        """Nobody to hear of."""
        return iter(())

    def free(self) -> None:
        """Nothing to free."""

    def abandon(self) -> None:
        """Nothing to stop."""


def open_exchange(config: Config, groups: Groups, model: nn.Module, topology: Topology) -> Exchange:
    """The configured transport. Collective over the world.

    Raises:
        UserError: the groups' models differ, or the transport cannot work here; on every rank.
    """
    if not config.codistill.with_peers:
        return NoExchange()
    if config.exchange.transport == "files":
        from hpcdistill.exchange.files import FilesExchange

        return FilesExchange(groups, model, config.run_dir / "exchange", config.exchange.codec)
    from hpcdistill.exchange.window.exchange import WindowExchange

    return WindowExchange(groups, model, degree=len(topology.peers(0)), codec=config.exchange.codec)
