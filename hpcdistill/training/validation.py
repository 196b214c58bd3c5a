"""Validation of a group's model, which a stop request ends early."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hpcdistill.distributed.groups import Groups
from hpcdistill.distributed.stop import StopRequest
from hpcdistill.errors import UserError
from hpcdistill.tasks.objective import TrainingObjective
from hpcdistill.tasks.task import ValidationBatches
from hpcdistill.training.precision import autocast
from hpcdistill.training.recorder import Recorder


class Validation:
    """Validation of one group's model; its constructor is collective over the group.

    Args:
        model: the model, whose weights may change between validations.
        objective: computes outputs and losses.
        batches: this rank's share of the data.
        groups: the groups.
        precision: `train.precision`, so that the model computes as in a training step.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: TrainingObjective[Any],
        batches: ValidationBatches,
        groups: Groups,
        precision: str = "float32",
    ) -> None:
        self._model = model
        self._objective = objective
        self._batches = batches
        self._groups = groups
        self._precision = precision
        self._rounds = max(groups.comm.allgather(len(batches)))  # equal on all ranks: each round has a vote

    @torch.no_grad()
    def loss(self, stop: StopRequest, recorder: Recorder) -> float | None:
        """Compute the mean cross-entropy over the group's validation data. Collective over the group.

        Args:
            stop: a request to stop ends the validation before the next batch.
            recorder: shows the progress.

        Returns:
            The mean in nats; None if the group has agreed to stop.

        Raises:
            UserError: there is no target.
        """
        batches, total, count = iter(self._batches), 0.0, 0
        self._model.eval()
        try:
            for _ in recorder.validating(self._rounds):
                if stop.agreed_now(self._groups.comm):  # a batch may take seconds, a vote takes none
                    return None
                on_host = next(batches, None)
                if on_host is not None:
                    batch = on_host.to(self._groups.device)
                    with autocast(self._precision, self._groups.device):
                        outputs = self._objective.outputs(self._model, *batch.inputs, **batch.named)
                    total += self._objective.cross_entropy(outputs, batch.target).sum().item()
                    count += int(batch.counted)
        finally:
            self._model.train()
        total, count = self._groups.sum(total), self._groups.sum(count)
        if not count:
            raise UserError("the validation data has no targets; give it some")
        return total / count
