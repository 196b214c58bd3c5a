"""What a group's peers would have predicted: their stale models, kept up to date through an exchange."""

from __future__ import annotations

import copy

import torch
from torch import nn

from hpcdistill.config import CodistillConfig
from hpcdistill.exchange import Exchange
from hpcdistill.snapshot import Layout


class Teachers:
    """Replicas of the peers' models at their last known snapshots (Anil et al. 2018, Algorithm 1).

    Args:
        config: weight, burn-in and exchange interval.
        model: the student; a replica of it is made for each peer, once that peer has been heard of.
        layout: the student's.
        exchange: where snapshots go and come from.
    """

    def __init__(self, config: CodistillConfig, model: nn.Module, layout: Layout, exchange: Exchange) -> None:
        self._config = config
        self._student = model
        self._layout = layout
        self._exchange = exchange
        self._replicas: dict[int, nn.Module] = {}
        self._steps: dict[int, int] = {}

    @torch.no_grad()
    def logits(self, inputs: torch.Tensor) -> list[torch.Tensor]:
        """One [..., V] tensor for each peer heard of so far; none before the first."""
        return [replica(inputs) for replica in self._replicas.values()]

    def staleness(self, step: int) -> dict[int, int]:
        """By peer, how many steps old its teacher is at `step`; negative when the peer is ahead."""
        return {peer: step - known for peer, known in self._steps.items()}

    def advance(self, step: int) -> None:
        """Publish if `step` is due and, after the burn-in, take up what has arrived; waits for no peer.

        Collective over the group.
        """
        if step % self._config.exchange_interval == 0:
            self._exchange.publish(step)
        if step >= self._config.burn_in:
            for peer, known, flat in self._exchange.collect():
                self._load(peer, flat)
                self._steps[peer] = known

    def _load(self, peer: int, flat: torch.Tensor) -> None:
        if peer not in self._replicas:
            self._replicas[peer] = copy.deepcopy(self._student).eval().requires_grad_(False)
        end = self._layout.nbytes
        torch._foreach_copy_(self._layout.slices(self._replicas[peer], 0, end), self._layout.views(flat[:end], 0, end))
