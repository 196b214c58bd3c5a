"""What a group's peers would have predicted: their stale models, kept up to date through an exchange."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from torch import nn

from hpcdistill.config.schema import CodistillConfig
from hpcdistill.data.batches import Batch
from hpcdistill.distributed.groups import Groups
from hpcdistill.exchange.base import Exchange
from hpcdistill.exchange.topology import Topology
from hpcdistill.exchange.weights import WeightPayload
from hpcdistill.tasks.objective import TrainingObjective

logger = logging.getLogger(__name__)

PATIENCE = 20
"""In exchange intervals: so long a teacher may teach that is not heard of anew, unless configured."""

WORSE_THAN_GUESSING = 0.5
"""By so many nats a teacher may be worse than one that has learned nothing: such a one is, by chance, a little."""


class Teachers:
    """Replicas of the peers' models at their last known snapshots (Anil et al. 2018, Algorithm 1).

    There are never more than the topology has peers: one that is no longer learned from goes on teaching until the
    first snapshot of its successor takes its place.

    A peer whose snapshot would do harm is put in quarantine: its model is kept, but not taught from until a better
    snapshot comes. That is one with numbers that are not finite, one that nothing has followed for too long, and one
    that predicts worse than by guessing the first batch that it is shown.

    Args:
        config: burn-in, exchange interval and the teachers' precision.
        model: the student; a replica of it is made for each peer, once that peer has been heard of.
        exchange: where snapshots go and come from.
        payload: what is exchanged.
        topology: which peers to learn from.
        groups: who is who.
        objective: what models put out, and how a snapshot is judged.

    Attributes:
        quarantine: the reasons, by peer.
    """

    def __init__(
        self,
        config: CodistillConfig,
        model: nn.Module,
        exchange: Exchange,
        payload: WeightPayload,
        topology: Topology,
        groups: Groups,
        objective: TrainingObjective[Any],
    ) -> None:
        self.quarantine: dict[int, str] = {}
        self._config = config
        self._student = model
        self._exchange = exchange
        self._payload = payload
        self._topology = topology
        self._groups = groups
        self._objective = objective
        self._peers: list[int] = []
        self._replicas: dict[int, nn.Module] = {}
        self._steps: dict[int, int] = {}  # of the peer, when it published
        self._heard: dict[int, int] = {}  # one's own, when that was taken up
        self._untried: set[int] = set()
        self._outputs: list[Any] = []
        parameter = next(model.parameters())
        self._dtype = parameter.dtype
        self._stream = torch.cuda.Stream(parameter.device) if parameter.is_cuda else None

    @torch.no_grad()
    def predict(self, batch: Batch) -> None:
        """Let each teacher look at the inputs; on a GPU, beside whatever is asked of it until `outputs` is called.

        Collective over the group. A new snapshot is first tried on the target.
        """
        if self._stream:
            self._stream.wait_stream(torch.cuda.current_stream())
        low = self._config.teacher_precision == "bf16"
        asked = {
            peer: replica
            for peer, replica in self._replicas.items()
            if peer not in self.quarantine or peer in self._untried
        }
        with torch.cuda.stream(self._stream), torch.autocast(batch.target.device.type, torch.bfloat16, enabled=low):
            predictions = {
                peer: self._objective.outputs(replica, *batch.inputs).to(self._dtype) for peer, replica in asked.items()
            }
            for peer in sorted(self._untried):
                self._try(peer, predictions[peer], batch.target)
        self._outputs = [outputs for peer, outputs in predictions.items() if peer not in self.quarantine]

    def outputs(self) -> list[Any]:
        """What `predict` made: outputs of the student's shape and dtype for each peer that may teach; none at first.

        They are handed over rather than kept, so that they live as long as the caller's loss needs them.
        """
        outputs, self._outputs = self._outputs, []
        if self._stream:
            stream = torch.cuda.current_stream()
            stream.wait_stream(self._stream)
            for each in outputs:
                each.record_stream(stream)
        return outputs

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
            self._exchange.set_peers(self._peers)
        if step >= self._config.burn_in:
            for snapshot in self._exchange.collect():
                replica = self._replica_of(snapshot.peer)
                self._payload.load(snapshot.shards, replica)
                self._steps[snapshot.peer] = snapshot.step
                self._heard[snapshot.peer] = step
                self._examine(snapshot.peer, replica)
            self._look_for_the_lost(step)

    def _examine(self, peer: int, replica: nn.Module) -> None:
        """What a snapshot shows by itself; the rest shows on the next batch."""
        if all(_is_finite(tensor) for tensor in (*replica.parameters(), *replica.buffers())):
            self._untried.add(peer)
        else:
            self._put_in_quarantine(peer, f"its snapshot of step {self._steps[peer]} is not finite")

    def _look_for_the_lost(self, step: int) -> None:
        """Not by staleness: a group that is behind, after a restart, may teach what it knows."""
        patience = self._config.max_staleness or PATIENCE * self._config.exchange_interval
        for peer, heard in self._heard.items():
            if step - heard > patience:
                self._put_in_quarantine(peer, f"not heard of for more than {patience} steps")

    def _try(self, peer: int, outputs: Any, target: torch.Tensor) -> None:
        self._untried.discard(peer)
        loss = self._objective.cross_entropy(outputs, target).mean().item()
        mean, guessing = self._groups.sum(loss) / self._groups.size, self._objective.chance_loss
        if not mean <= guessing + WORSE_THAN_GUESSING:
            numbers = f"{mean:.3g} nats, not {guessing:.3g}"
            self._put_in_quarantine(peer, f"as it was at step {self._steps[peer]} it is worse than guessing: {numbers}")
        elif self.quarantine.pop(peer, None):
            self._say(f"group {peer} teaches again, as it was at step {self._steps[peer]}")

    def _put_in_quarantine(self, peer: int, reason: str) -> None:
        if peer not in self.quarantine:
            self._say(f"group {peer} is not learned from, for now: {reason}")
        self.quarantine[peer] = reason
        self._untried.discard(peer)

    def _say(self, message: str) -> None:
        if self._groups.is_leader:
            logger.warning(f"group {self._groups.group}: {message}")

    def _replica_of(self, peer: int) -> nn.Module:
        if peer not in self._replicas:
            self._replicas[peer] = self._spare_replica()
        return self._replicas[peer]

    def _spare_replica(self) -> nn.Module:
        """That of a peer no longer learned from, or a new one."""
        if len(self._replicas) < len(self._peers):
            return copy.deepcopy(self._student).eval().requires_grad_(False)
        former = next(peer for peer in self._replicas if peer not in self._peers)
        del self._steps[former], self._heard[former]
        self.quarantine.pop(former, None)
        self._untried.discard(former)
        return self._replicas.pop(former)


def _is_finite(tensor: torch.Tensor) -> bool:
    if tensor.is_floating_point() and tensor.numel():
        tensor = torch.stack(torch.aminmax(tensor))  # NaN if any is; an eighth of the time that all numbers would take
    return bool(tensor.isfinite().all())
