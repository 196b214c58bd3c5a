"""Ensemble gap: how much better the mean of all groups' predictions is than one group's, on validation data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from hpcdistill.config.schema import Config
from hpcdistill.data.batches import Batch
from hpcdistill.distributed.groups import Groups
from hpcdistill.tasks.objective import EvaluationObjective, TrainingObjective

SHARE = 0.001
"""Maximum cost of the peers' forward passes, relative to that of the training steps between two validations."""

MOST, FEWEST = 8, 4
"""Maximum number of a rank's batches that the sample is from; minimum number of examples of each."""

TARGETS = 1024
"""Number of targets whose logits are computed at a time."""


def affordable(config: Config, ranks: int) -> int:
    """Return the number of examples for which one peer's model may predict on each rank in a validation, at least 1.

    A training step costs three forward passes of each of its examples.
    """
    return max(1, int(SHARE * config.train.validate_every * 3 * config.data.batch_size / ranks))


def choose(batches: int, examples: int) -> tuple[set[int], int]:
    """Return the numbers of the batches of the sample, evenly spread, and the number of examples of each.

    Args:
        batches: number of a rank's batches.
        examples: maximum number of examples.
    """
    count = max(1, min(MOST, batches, examples // FEWEST))
    return {number * batches // count for number in range(count)}, max(1, examples // count)


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

    def add(self, own: Any, batch: Batch, examples: int) -> None:
        """Add the first examples of a batch; the peers' models predict for them.

        Args:
            own: outputs of this group's model for the batch.
            batch: the batch, on the device.
            examples: number of examples.
        """
        first = batch.first(examples)
        outputs = [own, *(self._objective.outputs(model, *first.inputs, **first.named) for model in self._models)]
        targets = first.target.flatten()
        for begin in range(0, len(targets), TARGETS):
            chosen = slice(begin, min(begin + TARGETS, len(targets)))
            target = targets[chosen]
            logits = [self._objective.logits(each, batch.target.ndim, chosen) for each in outputs]
            losses = torch.stack([self._evaluation.cross_entropy(each, target).double() for each in logits])
            of_mean = math.log(len(losses)) - (-losses).logsumexp(0)  # a loss is -ln of the target's probability
            self._sums[:-1] += [*losses.sum(1).tolist(), of_mean.sum().item()]
        self._sums[-1] += int(first.counted)

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
