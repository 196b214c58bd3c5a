"""Quarantine of peers whose snapshots would harm the student."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hpcdistill.distributed.groups import Groups
from hpcdistill.models.finite import first_not_finite

logger = logging.getLogger(__name__)

ExcessLoss = Callable[[Any, Tensor], Tensor]
"""Function of a teacher's outputs and a target: its mean loss above that of a constant prediction, in nats, []."""

MARGIN = 0.5
"""Maximum excess loss of a teacher, in nats; by chance, one that has learned little is above zero."""


class Quarantine:
    """Peers that do not teach for now: with snapshots that are not finite, are outdated, or predict worse than chance.

    The model of a peer in quarantine is kept; the peer teaches again after its next snapshot that passes.

    Args:
        groups: the groups; all decisions are those of this rank's group.
        patience: steps for which a snapshot may teach without a successor. That is not staleness: a group that is
            behind, after a restart, may teach.
        excess_loss: judges a new snapshot on its first batch; None accepts all that are finite.

    Attributes:
        reasons: reasons by peer.
        published: step of each peer when it published its snapshot.
    """

    def __init__(self, groups: Groups, patience: int, excess_loss: ExcessLoss | None = None) -> None:
        self.reasons: dict[int, str] = {}
        self.published: dict[int, int] = {}
        self._groups = groups
        self._patience = patience
        self._excess_loss = excess_loss
        self._adopted: dict[int, int] = {}  # this group's step when it adopted that
        self._untried: set[int] = set()

    def is_active(self, peer: int) -> bool:
        """Return whether the peer may teach."""
        return peer not in self.reasons

    def is_asked(self, peer: int) -> bool:
        """Return whether the peer's predictions are needed: it teaches, or has a snapshot to validate."""
        return self.is_active(peer) or peer in self._untried

    def admit(self, peer: int, published: int, step: int, replica: nn.Module) -> None:
        """Check a new snapshot. Waits once until a GPU has done its work so far.

        Args:
            peer: the peer.
            published: its step when it published.
            step: this group's step.
            replica: the model with the snapshot's weights.
        """
        self.published[peer], self._adopted[peer] = published, step
        if first_not_finite({**dict(replica.named_parameters()), **dict(replica.named_buffers())}):
            self._put_in_quarantine(peer, f"its snapshot of step {published} is not finite")
        elif self._excess_loss is None:
            self._release(peer)
        else:
            self._untried.add(peer)

    def validate(self, predictions: Mapping[int, Any], target: Tensor | None) -> None:
        """Judge new snapshots by their first predictions. Collective over the group.

        Raises:
            ValueError: there is an `excess_loss`, but no target.
        """
        if self._excess_loss is None:
            return
        if target is None:
            raise ValueError("excess_loss compares predictions with the target: call predict(..., target=target)")
        peers = sorted(self._untried)
        if peers:  # read together: a GPU is waited for once
            losses = torch.stack([self._excess_loss(predictions[peer], target).float() for peer in peers])
            for peer, excess in zip(peers, losses.tolist(), strict=True):
                self._validate_snapshot(peer, self._groups.sum(excess) / self._groups.size)
        self._untried.clear()

    def expire(self, step: int) -> None:
        """Put peers in quarantine whose last snapshot was adopted more than `patience` steps before `step`."""
        for peer, adopted in self._adopted.items():
            if step - adopted > self._patience:
                self._put_in_quarantine(peer, f"no new snapshot of it for more than {self._patience} steps")

    def forget(self, peer: int) -> None:
        """Drop all that is known of a peer that no longer teaches this group."""
        self.reasons.pop(peer, None)
        self._untried.discard(peer)
        del self.published[peer], self._adopted[peer]

    def _validate_snapshot(self, peer: int, excess: float) -> None:
        if excess <= MARGIN:
            self._release(peer)
            return
        reason = f"{excess:.3g} nats worse than a constant prediction (at most {MARGIN} is accepted)"
        self._put_in_quarantine(peer, f"its snapshot of step {self.published[peer]} is {reason}")

    def _release(self, peer: int) -> None:
        if self.reasons.pop(peer, None):
            self._log(f"group {peer} has left quarantine with its snapshot of step {self.published[peer]}")

    def _put_in_quarantine(self, peer: int, reason: str) -> None:
        if peer not in self.reasons:
            self._log(f"group {peer} is in quarantine and does not teach: {reason}")
        self.reasons[peer] = reason
        self._untried.discard(peer)

    def _log(self, message: str) -> None:
        if self._groups.is_leader:
            logger.warning(f"group {self._groups.group}: {message}")
