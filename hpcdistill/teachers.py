"""What a group's peers would have predicted: their stale models, kept up to date through an exchange."""

from __future__ import annotations

import copy

import torch
from torch import nn

from hpcdistill.config import CodistillConfig
from hpcdistill.exchange import Exchange
from hpcdistill.exchange.topology import Topology


class Teachers:
    """Replicas of the peers' models at their last known snapshots (Anil et al. 2018, Algorithm 1).

    There are never more than the topology has peers: one that is no longer learned from goes on teaching until the
    first snapshot of its successor takes its place.

    Args:
        config: burn-in, exchange interval and the teachers' precision.
        model: the student; a replica of it is made for each peer, once that peer has been heard of.
        exchange: where snapshots go and come from.
        topology: which peers to learn from.
    """

    def __init__(self, config: CodistillConfig, model: nn.Module, exchange: Exchange, topology: Topology) -> None:
        self._config = config
        self._student = model
        self._exchange = exchange
        self._topology = topology
        self._peers: list[int] = []
        self._replicas: dict[int, nn.Module] = {}
        self._steps: dict[int, int] = {}
        self._logits: list[torch.Tensor] = []
        parameter = next(model.parameters())
        self._dtype = parameter.dtype
        self._stream = torch.cuda.Stream(parameter.device) if parameter.is_cuda else None

    @torch.no_grad()
    def predict(self, inputs: torch.Tensor) -> None:
        """Let each teacher look at `inputs`; on a GPU, beside whatever is asked of it until `logits` is called."""
        if self._stream:
            self._stream.wait_stream(torch.cuda.current_stream())
        low = self._config.teacher_precision == "bf16"
        with torch.cuda.stream(self._stream), torch.autocast(inputs.device.type, torch.bfloat16, enabled=low):
            predictions = [replica(inputs) for replica in self._replicas.values()]
            self._logits = [logits.to(self._dtype) for logits in predictions] if low else predictions

    def logits(self) -> list[torch.Tensor]:
        """What `predict` made: a [..., V] tensor of the student's dtype for each peer heard of; none before the first.

        They are handed over rather than kept, so that they live as long as the caller's loss needs them.
        """
        logits, self._logits = self._logits, []
        if self._stream:
            stream = torch.cuda.current_stream()
            stream.wait_stream(self._stream)
            for each in logits:
                each.record_stream(stream)
        return logits

    def staleness(self, step: int) -> dict[int, int]:
        """By peer, how many steps old its teacher is at `step`; negative when the peer is ahead."""
        return {peer: step - known for peer, known in self._steps.items()}

    def advance(self, step: int) -> None:
        """Publish if `step` is due and, after the burn-in, take up what has arrived; waits for no peer.

        Collective over the group.
        """
        if step % self._config.exchange_interval == 0:
            self._exchange.publish(step)
            self._peers = self._topology.peers(step // self._config.exchange_interval)
            self._exchange.learn_from(self._peers)
        if step >= self._config.burn_in:
            for snapshot in self._exchange.collect():
                snapshot.load(self._replica_of(snapshot.peer))
                self._steps[snapshot.peer] = snapshot.step

    def _replica_of(self, peer: int) -> nn.Module:
        if peer not in self._replicas:
            self._replicas[peer] = self._spare_replica()
        return self._replicas[peer]

    def _spare_replica(self) -> nn.Module:
        """That of a peer no longer learned from, or a new one."""
        if len(self._replicas) < len(self._peers):
            return copy.deepcopy(self._student).eval().requires_grad_(False)
        former = next(peer for peer in self._replicas if peer not in self._peers)
        del self._steps[former]
        return self._replicas.pop(former)
