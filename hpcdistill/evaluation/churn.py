"""Churn: how much the predictions of two models differ, so how much changes for users if one replaces the other.

A model that is trained again predicts something else; ensembles and codistillation reduce the difference (Anil et al.
2018, Section 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpcdistill.data.batches import IGNORED
from hpcdistill.errors import UserError
from hpcdistill.evaluation.predictions import open_validation_data, validation_outputs
from hpcdistill.models.saved import SavedModel
from hpcdistill.storage.run_dir import named_checkpoints

RESAMPLES = 1000
SEED = 0

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Estimate:
    """Mean and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Churn:
    """Differences between the predictions of A and of B, each a model or an ensemble."""

    a: list[str]
    """Names of the members of A."""
    b: list[str]
    """Names of the members of B."""
    data: str
    """Path of the store, or name of the function, that the data is from."""
    samples: int
    """Number of validation samples: rows, sequences or images."""
    mean_absolute_difference: Estimate
    """Mean of |p_a − p_b|, the probabilities of label 1; of more than two classes, the total variation distance."""
    disagreement: Estimate
    """Fraction of predictions whose most probable class differs."""


def churn(a: str, b: str, data: Path | None, which: str = "best", trust: bool = False) -> Churn:
    """Measure how much A's and B's predictions for the validation part of `data` differ.

    The intervals come from resampling whole samples, since the tokens of a sequence are not independent. They cover
    the choice of the validation data, not that of the seeds with which the models were trained.

    Args:
        a: name of a model; or several joined by commas, for the mean of the probabilities that they predict. A model
            is named by a checkpoint file, a run folder of one group, or RUN:GROUP; see `named_checkpoints`.
        b: name of the other model or ensemble.
        data: path of the store; None for the data that the models were trained on.
        which: checkpoint of a run's group: "best" or "last".
        trust: let checkpoints of other users name the code of their models.

    Raises:
        UserError: models or data do not exist, or do not fit each other.
    """
    members_a, members_b = _members(a, which), _members(b, which)
    saved = [SavedModel.load(path, trust) for path in (*members_a.values(), *members_b.values())]
    task = open_validation_data(saved, data)
    with task.store:
        objective, samples = task.objective, []
        for outputs, target in validation_outputs(task, saved):
            one, other = objective.ensemble(outputs[: len(members_a)]), objective.ensemble(outputs[len(members_a) :])
            differ = [
                _by_sample(objective.distance(one, other), target),
                _by_sample(objective.predict_class(one) != objective.predict_class(other), target),
            ]
            samples.append(torch.stack(differ, dim=1).cpu())
    values = torch.cat(samples).numpy()
    source = str(data or saved[0].config.data.source)
    return Churn([*members_a], [*members_b], source, len(values), *estimates(values))


def estimates(values: Array) -> list[Estimate]:
    """Return the mean of each column with its percentile bootstrap interval.

    Args:
        values: [samples, columns]; whole rows are drawn with replacement.
    """
    rng, count = np.random.default_rng(SEED), len(values)
    means = [values[rng.integers(count, size=count)].mean(0) for _ in range(RESAMPLES)]
    lows, highs = np.quantile(means, [0.025, 0.975], axis=0)
    return [Estimate(*map(float, column)) for column in zip(values.mean(0), lows, highs, strict=True)]


def _by_sample(values: Tensor, target: Tensor) -> Tensor:
    """Return the mean over the targets of each sample that are not ignored, float64; without samples that have none."""
    counted = (target != IGNORED).view(len(target), -1)
    totals, counts = (values.double().view_as(counted) * counted).sum(1), counted.sum(1)
    return totals[counts > 0] / counts[counts > 0]


def _members(names: str, which: str) -> dict[str, Path]:
    members: dict[str, Path] = {}
    for name in names.split(","):
        found = named_checkpoints(name, which)
        if len(found) > 1:
            raise UserError(
                f"{name} holds {len(found)} models; choose one of them, or the mean of all with {','.join(found)}"
            )
        members |= found
    return members
