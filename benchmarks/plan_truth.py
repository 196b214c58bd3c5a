"""Right verdicts: what full trainings show of twice the batch and of a second group, with intervals over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from hpcdistill.planning.verdict import ANOTHER_GROUP, MORE_WORKERS, NEITHER, PAYS, REGULARIZE
from study import interval, reached

TEACHER = 1 / 3
"""Time of a teacher in a step, relative to a step of one group, where it was not measured."""
RISES = 0.01
"""Relative rise of the validation loss after its lowest value from which a model has overfitted."""

Curve = dict[str, Any]
"""Steps and validation losses of one group, as in the results of studies."""


@dataclass(frozen=True)
class StepTimes:
    """Times of a step, relative to that of one group with batch B; by default those of ideal workers."""

    double: float = 1.0
    """One group with 2B and twice the workers."""
    burn_in: float = 1.0
    """Two groups before teachers teach."""
    later: float = 1.0 + TEACHER
    """Two groups afterwards."""


@dataclass(frozen=True)
class Cost:
    """Time to the lowest loss of one group with B, relative to that group's."""

    time: float
    is_reached: bool = True
    """False if the loss was not reached: `time` is that of the whole training, a lower bound."""


@dataclass(frozen=True)
class Truth:
    """Findings of the full trainings of one seed."""

    double: Cost
    """Cost of one group with 2B."""
    two: Cost
    """Cost of two codistilling groups, the mean of both; it is reached if both groups reach the loss."""
    rise: float
    """Relative rise of the validation loss of one group with B, from its lowest value to the end."""


def find_truth(
    one: Curve, double: Curve, two: Sequence[Curve], burn_in: int = 0, times: StepTimes | None = None
) -> Truth:
    """Compare full trainings of one seed.

    Args:
        one: one group with batch B.
        double: one group with 2B.
        two: both codistilling groups.
        burn_in: their steps before teachers teach.
        times: relative times of steps; None for those of ideal workers.
    """
    times = times or StepTimes()
    losses = one["validation_loss"]
    best = min(losses)
    alone, _ = steps_to_loss(one, best)
    steps, is_reached = steps_to_loss(double, best)
    groups = [steps_to_loss(each, best) for each in two]
    seconds = [times.burn_in * min(each, burn_in) + times.later * max(0.0, each - burn_in) for each, _ in groups]
    return Truth(
        Cost(times.double * steps / alone, is_reached),
        Cost(fmean(seconds) / alone, all(each for _, each in groups)),
        losses[-1] / best - 1,
    )


def steps_to_loss(of_group: Curve, target: float) -> tuple[float, bool]:
    """Return the steps to a validation loss and True, or all steps and False if it was not reached."""
    steps = reached(of_group["steps"], of_group["validation_loss"], target)
    return (of_group["steps"][-1], False) if steps is None else (steps, True)


def find_answer(truths: Sequence[Truth]) -> tuple[str, bool]:
    """Return the right verdict of a regime, by the means over seeds, and True if the trainings decide it.

    One seed decides. Several do if each comparison that the verdict rests on is clear: its bound lies outside the 95 %
    interval of the rise, of a cost, or of the difference of the two costs, paired by seed. A use pays only if all seeds
    reach the loss, because a lower bound of a cost shows at most that it does not.
    """
    rises = [truth.rise for truth in truths]
    if fmean(rises) > RISES:
        return REGULARIZE, is_clear(rises, RISES)
    costs = {MORE_WORKERS: [truth.double for truth in truths], ANOTHER_GROUP: [truth.two for truth in truths]}
    times = {use: [cost.time for cost in of_use] for use, of_use in costs.items()}
    best, other = sorted(times, key=lambda use: fmean(times[use]))
    if fmean(times[best]) >= PAYS:
        return NEITHER, is_clear(rises, RISES) and all(is_clear(each, PAYS) for each in times.values())
    less = [one - another for one, another in zip(times[best], times[other], strict=True)]
    is_decided = is_clear(rises, RISES) and is_clear(times[best], PAYS) and is_clear(less, 0.0)
    return best, is_decided and all(cost.is_reached for cost in costs[best])


def is_clear(values: Sequence[float], bound: float) -> bool:
    """Return True if `bound` lies outside the 95 % interval of the mean, or if there is one value only."""
    if len(values) == 1:
        return True
    mean, half = interval(values)
    return abs(mean - bound) >= half
