"""Protocol of teachers, which peers, fixed models and a group's own earlier model meet alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn


class Teachers(Protocol):
    """Models towards whose predictions the loss draws a group's student."""

    @property
    def quarantine(self) -> Mapping[int, str]:
        """Reasons why peers do not teach for now, by peer."""

    @property
    def models(self) -> Mapping[int, nn.Module]:
        """Replicas of the peers' models by group, for measurements; those in quarantine are left out."""

    def predict(self, *inputs: Any, target: Tensor | None = None, **kwargs: Any) -> Sequence[Any]:
        """Return the outputs of each active teacher, without gradient. Collective over the group.

        Args:
            inputs: what the student's forward takes.
            target: the batch's target, for teachers that need it.
            kwargs: what the student's forward takes by name.
        """

    def step(self, step: int) -> None:
        """Take, publish and adopt snapshots after optimizer step number `step`. Collective over the group."""

    def staleness(self, step: int) -> dict[int, int]:
        """Return by how many steps each teacher is behind `step`, by its group; negative if it is ahead."""
