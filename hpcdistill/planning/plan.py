"""Plans: predicted step time, steps and time of more workers and of more groups, and the verdict on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpcdistill.errors import UserError
from hpcdistill.planning import laws
from hpcdistill.planning.draws import Draws, Interval, interval
from hpcdistill.planning.inputs import Inputs, Source, estimate
from hpcdistill.planning.pilot import Pilot, read_pilot
from hpcdistill.planning.verdict import Verdict, judge

FACTORS = ((1, 1), (1, 2), (2, 1), (1, 4), (4, 1))
"""Groups and, in units of the pilot's, ranks of each group: the rows of a plan."""


@dataclass(frozen=True)
class Row:
    """Prediction for one division of ranks into groups."""

    groups: int
    ranks: int
    """Ranks of each group."""
    batch: int
    """Examples per group and step: in proportion to the ranks."""
    step_seconds: Interval
    """Seconds per step; with teachers, where there are several groups."""
    steps: Interval
    """Steps to the loss."""
    seconds: Interval
    """Time to the loss."""
    relative: Interval
    """Time to the loss, relative to that of one group with the pilot's ranks."""


@dataclass(frozen=True)
class Plan:
    """Forecast for a training, from its pilot."""

    runs: list[str]
    loss: Interval
    """Validation loss that one group with the pilot's ranks is heading for, in nats."""
    unit: str
    rows: list[Row]
    inputs: list[Source]
    verdict: Verdict

    def table(self) -> list[list[str]]:
        """Return the cells of the table, titles first."""
        titles = ["groups x ranks", "batch", "seconds per step", "steps", "hours", "relative time"]
        titles[4] = "seconds" if max(row.seconds.value for row in self.rows) < 7200 else "hours"
        unit = 1 if titles[4] == "seconds" else 3600
        return [titles, *(_cells(row, unit) for row in self.rows)]


def plan(
    runs: Sequence[Path], steps: int | None = None, totals: Sequence[int] = (), link: laws.Link | None = None
) -> Plan:
    """Predict what more workers and more groups would do for a training.

    Args:
        runs: folders of pilots that differ at most in their seeds.
        steps: length of the training that is planned; None for `train.steps` of the pilot, or ten times the pilot's
            steps if that is not longer than the pilot's burn-in.
        totals: further numbers of ranks, of all groups together, to predict.
        link: network that a group with more ranks than the pilot's spans.

    Raises:
        UserError: the pilot does not suffice, or `totals` are not multiples of its ranks per group.
    """
    pilot = read_pilot(runs)
    inputs = estimate(pilot, steps, link)
    divisions = [(groups, factor) for groups, factor in FACTORS if groups == 1 or inputs.gap is not None]
    divisions += [
        each for total in totals for each in _divisions(pilot, total) if inputs.gap is not None or each[0] == 1
    ]
    predicted = {each: _predict(inputs, *each) for each in dict.fromkeys(divisions)}
    one = predicted[1, 1].seconds
    rows = [_row(pilot, *each, predicted[each], one) for each in predicted]
    return Plan(
        runs=[str(run) for run in runs],
        loss=interval(inputs.target),
        unit=pilot.unit,
        rows=rows,
        inputs=inputs.sources(),
        verdict=judge(inputs, predicted[1, 2].seconds / one, *_compare_groups(predicted)),
    )


@dataclass(frozen=True)
class _Prediction:
    step: Draws
    """Seconds per step, with teachers."""
    steps: Draws
    seconds: Draws
    """Time of all steps."""


def _compare_groups(predicted: dict[tuple[int, int], _Prediction]) -> tuple[Draws | None, Draws | None]:
    """Return the time to the loss and that of a step of two groups, relative to one; None if two are not predicted."""
    one, two = predicted[1, 1], predicted.get((2, 1))
    return (None, None) if two is None else (two.seconds / one.seconds, two.step / one.step)


def _divisions(pilot: Pilot, total: int) -> Iterator[tuple[int, int]]:
    """Yield the groups and factors that divide `total` ranks.

    Raises:
        UserError: `total` is not a multiple of the pilot's ranks per group.
    """
    if total % pilot.ranks:
        raise UserError(
            f"--ranks {total} is not a multiple of {pilot.ranks}, the ranks of a group of the pilot, whose batch of "
            f"{pilot.batch} they share; try {total // pilot.ranks * pilot.ranks or pilot.ranks}"
        )
    for groups in (1, 2, 4):
        if total % (groups * pilot.ranks) == 0:
            yield groups, total // (groups * pilot.ranks)


def _predict(inputs: Inputs, groups: int, factor: int) -> _Prediction:
    """Predict one division into `groups`, each with `factor` times the pilot's ranks and batch."""
    steps = inputs.steps * laws.steps_of_batch(inputs.noise_share, factor)
    step = inputs.step_seconds(groups, factor, teachers=groups - 1)
    if groups == 1:
        return _Prediction(step, steps, step * steps)
    assert inputs.gap is not None
    gap = laws.gap_of_groups(inputs.gap, inputs.pilot.groups, groups)
    alone = inputs.burn_in / inputs.steps
    before = alone * steps
    after = (1 - alone) * steps * laws.steps_after_burn_in(gap, inputs.slope, inputs.earned)
    seconds = before * inputs.step_seconds(groups, factor, teachers=0) + after * step
    return _Prediction(step, before + after, seconds)


def _row(pilot: Pilot, groups: int, factor: int, predicted: _Prediction, one: Draws) -> Row:
    return Row(
        groups=groups,
        ranks=factor * pilot.ranks,
        batch=factor * pilot.batch,
        step_seconds=interval(predicted.step),
        steps=interval(predicted.steps),
        seconds=interval(predicted.seconds),
        relative=interval(predicted.seconds / one),
    )


def _cells(row: Row, unit: int) -> list[str]:
    seconds = Interval(*(value / unit for value in (row.seconds.value, row.seconds.low, row.seconds.high)))
    values = (row.step_seconds, row.steps, seconds, row.relative)
    return [f"{row.groups} x {row.ranks}", str(row.batch), *map(str, values)]
