"""Ensemble gap: how much better the mean of all groups' predictions is than one group's, on validation data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from hpcdistill.data.batches import Batch
from hpcdistill.distributed.groups import Groups
from hpcdistill.tasks.objective import EvaluationObjective, TrainingObjective

EVERY = 8
"""One in 8 validation batches is in the sample."""

MOST = 8
"""Maximum number of batches of each rank in the sample."""

TARGETS = 1024
"""Number of targets whose logits are computed at a time."""


def is_sampled(number: int, batches: int) -> bool:
    """Return whether batch `number` of `batches` is in the sample, which is the same in each validation."""
    return number % max(EVERY, -(-batches // MOST)) == 0


class Ensemble:
    """Losses of all groups' models, and of the mean of their predicted probabilities, on a sample.

    Args:
        objective: computes outputs.
        evaluation: compares logits.
        models: the peers' models, by group.
    """

    def __init__(
        self, objective: TrainingObjective[Any], evaluation: EvaluationObjective, models: Mapping[int, nn.Module]
    ) -> None:
        self._objective = objective
        self._evaluation = evaluation
        self._models = [model for _, model in sorted(models.items())]
        self._sums = np.zeros(len(models) + 3)  # loss of each model, of the mean; number of targets

    def add(self, own: Any, batch: Batch) -> None:
        """Add a batch; the peers' models predict for it.

        Args:
            own: outputs of this group's model.
            batch: the batch, on the device.
        """
        outputs = [own, *(self._objective.outputs(model, *batch.inputs, **batch.named) for model in self._models)]
        for begin in range(0, batch.target.numel(), TARGETS):
            chosen = slice(begin, begin + TARGETS)
            target = batch.target.flatten()[chosen]
            logits = [self._objective.logits(each, batch.target.ndim, chosen) for each in outputs]
            logits.append(self._evaluation.ensemble(logits))
            losses = [self._evaluation.cross_entropy(each, target).double().sum() for each in logits]
            self._sums[:-1] += [loss.item() for loss in losses]
        self._sums[-1] += int(batch.counted)

    def metrics(self, groups: Groups) -> dict[str, Any]:
        """Return the metrics of the sample; empty without peers or targets, or if a loss is not finite.

        Collective over the group.
        """
        if not self._models:
            return {}
        *losses, count = groups.sum(self._sums).tolist()
        if not count:
            return {}
        *members, ensemble = [loss / count for loss in losses]
        if not all(map(math.isfinite, (*members, ensemble))):
            return {}
        gap = sum(members) / len(members) - ensemble
        return {"ensemble_loss": ensemble, "members_loss": members, "ensemble_gap": gap}
