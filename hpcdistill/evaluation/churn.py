"""How much the predictions of two models differ: what changes for users when one takes the other's place.

Anil et al. 2018, Section 3: a model that is trained again predicts something else, which an ensemble or
codistillation lessens.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpcdistill.errors import UserError
from hpcdistill.evaluation.predictions import validation_outputs
from hpcdistill.storage.run_dir import named_checkpoints
from hpcdistill.tasks.registry import open_task

RESAMPLES = 1000
SEED = 0

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Estimate:
    """A mean, and the 95 % bootstrap interval of it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Churn:
    """Between the predictions of A and those of B, each one model or the ensemble of several."""

    a: list[str]
    """The members of A by name."""
    b: list[str]
    data: str
    samples: int
    """Rows or sequences of the validation part that both have looked at."""
    mean_absolute_difference: Estimate
    """Of the predicted probabilities of yes, |p_a − p_b|; of more than two classes, the total variation distance."""
    disagreement: Estimate
    """Share of predictions whose likeliest answer differs."""


def churn(a: str, b: str, data: Path, which: str = "best", trust: bool = False) -> Churn:
    """How much A's and B's predictions for the validation part of `data` differ.

    Samples are drawn anew for the intervals, a whole sequence at a time: its tokens are not independent. So these tell
    what other validation data could have shown, and not what models of other seeds could.

    Args:
        a: a model, or several joined by commas for the mean of the probabilities that they predict. Each is a
            checkpoint file, a run folder of one group, or RUN:GROUP; see `named_checkpoints`.
        b: likewise.
        data: the store.
        which: of a run's checkpoints, the "best" or the "last" one of the group.
        trust: let checkpoints of other users name the code of their models.

    Raises:
        UserError: no such models or data, or they do not fit each other.
    """
    members_a, members_b = _members(a, which), _members(b, which)
    task = open_task(data)
    with task.store:
        judge, samples = task.objective, []
        for outputs, _ in validation_outputs(task, [*members_a.values(), *members_b.values()], trust):
            one, other = judge.ensemble(outputs[: len(members_a)]), judge.ensemble(outputs[len(members_a) :])
            differ = [
                _by_sample(judge.distance(one, other)),
                _by_sample(judge.predict_class(one) != judge.predict_class(other)),
            ]
            samples.append(torch.stack(differ, dim=1).cpu())
    values = torch.cat(samples).numpy()
    return Churn([*members_a], [*members_b], str(data), len(values), *estimates(values))


def estimates(values: Array) -> list[Estimate]:
    """The mean of each column, with the percentile bootstrap interval of the mean.

    Args:
        values: [samples, columns], of which whole rows are drawn with replacement.
    """
    chance, count = np.random.default_rng(SEED), len(values)
    means = [values[chance.integers(count, size=count)].mean(0) for _ in range(RESAMPLES)]
    lows, highs = np.quantile(means, [0.025, 0.975], axis=0)
    return [Estimate(*map(float, column)) for column in zip(values.mean(0), lows, highs, strict=True)]


def _by_sample(values: Tensor) -> Tensor:
    """The mean over all but the first dimension, float64 [batch]."""
    return values.double().view(len(values), -1).mean(1)


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
