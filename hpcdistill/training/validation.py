"""Validation of a group's model, which a stop request ends early."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from hpcdistill.distributed.groups import Groups
from hpcdistill.distributed.stop import StopRequest
from hpcdistill.errors import UserError
from hpcdistill.storage.metrics import Record
from hpcdistill.tasks.objective import EvaluationObjective, TrainingObjective
from hpcdistill.tasks.task import ValidationBatches
from hpcdistill.training.ensemble import Ensemble, choose
from hpcdistill.training.precision import autocast
from hpcdistill.training.recorder import Recorder


class Validated(NamedTuple):
    """Result of a validation."""

    loss: float
    """Mean cross-entropy in nats."""
    ensemble: Record
    """Metrics of the ensemble of all groups' models; empty without peers."""


class Validation:
    """Validation of one group's model; its constructor is collective over the group.

    Args:
        model: the model, whose weights may change between validations.
        objective: computes outputs and losses.
        evaluation: averages predictions.
        batches: this rank's share of the data.
        groups: the groups.
        precision: `train.precision`, so that the model computes as in a training step.
        sample: number of examples of each rank for which the peers' models predict, divided among them.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: TrainingObjective[Any],
        evaluation: EvaluationObjective,
        batches: ValidationBatches,
        groups: Groups,
        precision: str = "float32",
        sample: int = 1,
    ) -> None:
        self._model = model
        self._objective = objective
        self._evaluation = evaluation
        self._batches = batches
        self._groups = groups
        self._precision = precision
        self._sample = sample
        self._rounds = max(groups.comm.allgather(len(batches)))  # equal on all ranks: each round has a vote

    @torch.no_grad()
    def validate(self, stop: StopRequest, recorder: Recorder, models: Mapping[int, nn.Module]) -> Validated | None:
        """Compute the mean cross-entropy over the group's validation data. Collective over the group.

        Args:
            stop: a request to stop ends the validation before the next batch.
            recorder: shows the progress.
            models: the peers' models by group, which predict for a sample of the data.

        Returns:
            The result; None if the group has agreed to stop.

        Raises:
            UserError: there is no target.
        """
        ensemble = Ensemble(self._objective, self._evaluation, models)
        sampled, examples = choose(len(self._batches), self._sample // max(1, len(models)))
        batches, total, count = iter(self._batches), 0.0, 0
        self._model.eval()
        try:
            for number in recorder.validating(self._rounds):
                if stop.agreed_now(self._groups.comm):  # a batch may take seconds, a vote takes none
                    return None
                on_host = next(batches, None)
                if on_host is not None:
                    batch = on_host.to(self._groups.device)
                    with autocast(self._precision, self._groups.device):
                        outputs = self._objective.outputs(self._model, *batch.inputs, **batch.named)
                        if models and number in sampled:
                            ensemble.add(outputs, batch, examples)
                    total += self._objective.cross_entropy(outputs, batch.target).sum().item()
                    count += int(batch.counted)
        finally:
            self._model.train()
        total, count = self._groups.sum(total), self._groups.sum(count)
        if not count:
            raise UserError("the validation data has no targets; give it some")
        return Validated(total / count, ensemble.metrics(self._groups))
