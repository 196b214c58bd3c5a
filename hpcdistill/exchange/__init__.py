"""How a group's snapshots reach the other groups.

A transport publishes this group's weights and collects its peers', and never makes one group wait for
another. `window` carries them inside one MPI world.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import TracebackType

import torch
from torch import nn

from hpcdistill.config import Config
from hpcdistill.exchange.topology import peers_of
from hpcdistill.groups import Groups
from hpcdistill.snapshot import Layout


class Exchange(ABC):
    """What every transport offers. Used by the training thread only; a context manager that frees on exit."""

    @abstractmethod
    def publish(self, step: int) -> bool:
        """Offer the model as it is now, after `step` steps, to all peers; False when it was skipped.

        It is skipped, rather than waited for, when the transport is still busy with the previous one. Collective
        over the group.
        """

    @abstractmethod
    def collect(self) -> Iterator[tuple[int, int, torch.Tensor]]:
        """New snapshots since the last call as (peer, step, flat bytes); collective over the group.

        All ranks of a group receive the same snapshots in the same call. The bytes, uint8 in the layout of
        the model, are valid until the next item is asked for.
        """

    def __enter__(self) -> Exchange:
        return self

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of all that the exchange holds; collective over the world, unless there was an exception."""


class NoExchange(Exchange):
    """The `Exchange` of groups that do not teach each other."""

    def publish(self, step: int) -> bool:
        """Nobody to publish to."""
        return False

    def collect(self) -> Iterator[tuple[int, int, torch.Tensor]]:
        """Nobody to hear of."""
        return iter(())

    def __exit__(self, *_: object) -> None:
        pass


def open_exchange(config: Config, groups: Groups, model: nn.Module, layout: Layout) -> Exchange:
    """The configured transport. Collective over the world.

    Raises:
        UserError: the groups' models differ, or the transport cannot work here; on every rank.
    """
    if config.codistill.weight == 0:
        return NoExchange()
    from hpcdistill.exchange.window import WindowExchange

    return WindowExchange(groups, model, layout, peers_of(config.exchange.topology, groups.group, groups.count))
