"""Teacher that is a group's own model at an earlier step."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hpcdistill.codistill.predictions import Outputs
from hpcdistill.codistill.replicas import Replicas
from hpcdistill.distributed.groups import Groups
from hpcdistill.exchange.layout import Layout
from hpcdistill.models.outputs import model_outputs

logger = logging.getLogger(__name__)


class SelfTeacher:
    """Replica of the model that a group would publish, at its last snapshot: self-distillation.

    Snapshots are taken when peers would publish theirs, also during the burn-in, and teach after it. So a run with this
    teacher differs from one with peers only in the model that teaches.

    Args:
        student: the model of which the replica is made.
        published: the model of which snapshots are taken: the student, or an average of its weights.
        groups: the groups.
        interval: steps between two snapshots.
        burn_in: steps before the model teaches.
        outputs: computes a model's outputs, as for `Codistillation`.
        precision: "full", or "bf16" for autocast to bfloat16 where the caller uses no autocast.
    """

    quarantine: ClassVar[dict[int, str]] = {}
    models: ClassVar[dict[int, nn.Module]] = {}

    def __init__(
        self,
        student: nn.Module,
        published: nn.Module,
        groups: Groups,
        *,
        interval: int,
        burn_in: int,
        outputs: Outputs = model_outputs,
        precision: str = "full",
    ) -> None:
        self._published = published
        self._groups = groups
        self._interval = interval
        self._burn_in = burn_in
        self._layout = Layout.of(published)
        self._forward = Replicas(student, outputs, precision)
        self._replica = self._forward.make()
        self._taken: int | None = None  # step of the snapshot
        self._step = 0

    @torch.no_grad()
    def predict(self, *inputs: Any, target: Tensor | None = None, **kwargs: Any) -> Sequence[Any]:
        """Return the outputs of the snapshot; nothing during the burn-in and before the first snapshot.

        Raises:
            UserError: the model cannot predict for these inputs.
        """
        if self._taken is None or self._step < self._burn_in:
            return []
        with self._forward.side_stream(inputs, kwargs):
            outputs = self._forward.predict(self._replica, self._groups.group, inputs, kwargs)
        return self._forward.hand_over([outputs])

    def step(self, step: int) -> None:
        """Take a snapshot if an interval has passed. Collective over the group."""
        if step // self._interval > self._step // self._interval:
            self._take(step)
        self._step = step

    def staleness(self, step: int) -> dict[int, int]:
        """Return by how many steps the snapshot is behind `step`, by the number of this group."""
        if self._taken is None or step < self._burn_in:
            return {}
        return {self._groups.group: step - self._taken}

    def state_dict(self) -> dict[str, Any]:
        """Return the snapshot, `model`, and the `step` at which it was taken; None for both if there is none."""
        return {"step": self._taken, "model": None if self._taken is None else self._replica.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any] | None, step: int) -> None:
        """Continue after `step` steps.

        Args:
            state: result of `state_dict`; without a snapshot, the model teaches from its next snapshot on.
            step: number of steps made.
        """
        self._step = step
        self._taken = None
        if state and state["model"] is not None:
            self._taken = state["step"]
            self._forward.wait()
            self._replica.load_state_dict(state["model"])
        elif step >= self._interval and self._groups.is_leader:
            logger.warning(
                f"group {self._groups.group}: the state of step {step} has no snapshot of the group's own model, which "
                f"teaches again from step {(step // self._interval + 1) * self._interval} on"
            )

    @torch.no_grad()
    def _take(self, step: int) -> None:
        self._forward.wait()
        copies = self._layout.tensors(self._replica)
        torch._foreach_copy_(copies, self._layout.tensors(self._published))
        # Each rank has its own statistics of batch normalization, and checkpoints the leader's.
        buffers = [copy for copy, entry in zip(copies, self._layout.entries, strict=True) if not entry.is_weight]
        if buffers and self._groups.size > 1:
            leaders = self._groups.comm.bcast([buffer.cpu() for buffer in buffers])
            torch._foreach_copy_(buffers, leaders)
        self._taken = step
