"""Teachers that are stale replicas of the peers' models, kept up to date through an exchange."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hpcdistill.codistill.predictions import Outputs
from hpcdistill.codistill.quarantine import Quarantine
from hpcdistill.codistill.replicas import Replicas
from hpcdistill.exchange.base import Exchange, Snapshot
from hpcdistill.exchange.topology import Topology
from hpcdistill.exchange.weights import WeightPayload
from hpcdistill.models.outputs import model_outputs

logger = logging.getLogger(__name__)

LOOK_EVERY = 25
"""Steps between two looks for snapshots during the burn-in, when only measurements need them."""


class PeerTeachers:
    """Replicas of the peers' models at their last known snapshots (Anil et al. 2018, Algorithm 1).

    There are at most as many replicas as the topology has peers: a group that is no longer a peer teaches on until
    the first snapshot of its successor takes its place.

    Args:
        student: the model of which a replica is made for each peer, when its first snapshot arrives.
        exchange: the transport of snapshots.
        payload: loads a snapshot into a replica.
        topology: the peers of this group.
        quarantine: decides which peers teach.
        interval: steps between two publishes.
        burn_in: steps before peers teach; snapshots are adopted from the first one on, every `LOOK_EVERY` steps, so
            that the models can be compared.
        outputs: computes a model's outputs, as for `Codistillation`.
        precision: "full", or "bf16" for autocast to bfloat16 where the caller uses no autocast.
    """

    def __init__(
        self,
        student: nn.Module,
        exchange: Exchange,
        payload: WeightPayload,
        topology: Topology,
        quarantine: Quarantine,
        *,
        interval: int,
        burn_in: int,
        outputs: Outputs = model_outputs,
        precision: str = "full",
    ) -> None:
        self._forward = Replicas(student, outputs, precision)
        self._exchange = exchange
        self._payload = payload
        self._topology = topology
        self._quarantine = quarantine
        self._interval = interval
        self._burn_in = burn_in
        self._last: int | None = None
        self._teaches = False
        self._peers: list[int] = []
        self._replicas: dict[int, nn.Module] = {}

    @property
    def quarantine(self) -> dict[int, str]:
        """Reasons why peers do not teach for now, by peer."""
        return self._quarantine.reasons

    @property
    def models(self) -> dict[int, nn.Module]:
        """Replicas of the peers' models by group, for measurements; those in quarantine are left out."""
        return {peer: replica for peer, replica in self._replicas.items() if self._quarantine.is_active(peer)}

    @torch.no_grad()
    def predict(self, *inputs: Any, target: Tensor | None = None, **kwargs: Any) -> Sequence[Any]:
        """Return the outputs of each active teacher; none during the burn-in. Collective over the group.

        On a GPU the teachers compute on a side stream, for which the reader of the outputs waits. The target is needed
        where a new snapshot is validated.

        Raises:
            UserError: a teacher cannot predict for these inputs.
        """
        if not self._teaches:
            return []
        asked = {peer: replica for peer, replica in self._replicas.items() if self._quarantine.is_asked(peer)}
        with self._forward.side_stream(inputs, kwargs):
            predictions = {
                peer: self._forward.predict(replica, peer, inputs, kwargs) for peer, replica in asked.items()
            }
            self._quarantine.validate(predictions, target)
        return self._forward.hand_over([each for peer, each in predictions.items() if self._quarantine.is_active(peer)])

    def staleness(self, step: int) -> dict[int, int]:
        """Return by how many steps each peer's teacher is behind `step`, by peer; negative if it is ahead.

        It is empty during the burn-in.
        """
        if step < self._burn_in:
            return {}
        return {peer: step - published for peer, published in self._quarantine.published.items()}

    def step(self, step: int) -> None:
        """Publish if an interval has passed, and adopt the snapshots that have arrived.

        Waits for no peer. Collective over the group.
        """
        last = step - 1 if self._last is None else self._last
        self._last = step
        self._teaches = step >= self._burn_in
        if not self._teaches and step // LOOK_EVERY > last // LOOK_EVERY:  # before the peers change
            self._collect(step)  # lets the ranks agree on the snapshots that they all have
            self._collect(step)  # adopts these
        interval = step // self._interval
        if interval > last // self._interval:
            self._exchange.publish(step)
            self._peers = self._topology.peers(interval)
            self._exchange.set_peers(self._peers)
        if self._teaches:
            self._collect(step)
            self._quarantine.expire(step)

    def _collect(self, step: int) -> None:
        for snapshot in self._exchange.collect():
            self._adopt(snapshot, step)

    def _adopt(self, snapshot: Snapshot, step: int) -> None:
        peer = snapshot.peer
        self._forward.wait()
        if peer not in self._replicas:
            self._replicas[peer] = self._spare_replica()
        self._payload.load(snapshot.shards, self._replicas[peer])
        logger.debug(f"group {self._topology.group}: adopted step {snapshot.step} of group {peer} after {step} steps")
        # Waits for the GPU, which then no longer reads the snapshot's memory.
        self._quarantine.admit(peer, snapshot.step, step, self._replicas[peer])

    def _spare_replica(self) -> nn.Module:
        """Return a new replica, or that of a group which is no longer a peer."""
        if len(self._replicas) < len(self._peers):
            return self._forward.make()
        former = next(peer for peer in self._replicas if peer not in self._peers)
        self._quarantine.forget(former)
        return self._replicas.pop(former)
