"""Measurements of a pilot: the steps of a run before teachers teach, during which its groups are independent."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from statistics import fmean
from typing import Any

from hpcdistill.errors import UserError
from hpcdistill.planning.draws import Curve
from hpcdistill.storage.metrics import GroupMetrics, Record, read_run

NOISE_EVERY = 50
"""Steps between two noise measurements of a group, where its metrics have fewer than two."""

NOISE_MEASUREMENTS = 4
"""Least number of measured noise scales, of all groups together."""

GAP_MEASUREMENTS = 2
"""Least number of measured ensemble gaps, of all groups together."""

FREEDOM = 3
"""Least degrees of freedom of a fit to validation losses: losses less one for each group and for the slope."""

NOISE = ("gradient_square", "gradient_variance")
"""Fields of a noise measurement."""

PARTS = ("data", "teachers", "exchange", "averaging", "compute")
"""Parts of a step's time."""

RECORDS = 8
"""Least number of training losses of each group from which their slope is fitted."""

SAME = (
    *("data_source", "training_size", "unit", "parameters", "ranks_per_group", "config.groups", "config.optimizer"),
    *("config.data.batch_size", "config.data.partition", "config.train.steps", "config.codistill"),
)
"""Facts of the first line that all groups of a pilot have in common."""


@dataclass(frozen=True)
class Pilot:
    """Measurements of the second half of the steps before teachers teach, of all groups together."""

    groups: int
    ranks: int
    """Ranks of a group."""
    batch: int
    """Examples per group and step."""
    unit: str
    """Thing that each prediction is for."""
    device: str
    cores: int
    """Cores that the ranks of a node share."""
    ranks_on_node: int
    gradient_bytes: int
    steps: int
    """Steps of the whole training, `train.steps`."""
    burn_in: int
    """Steps before teachers teach, `codistill.burn_in`."""
    teaches: bool
    """True if teachers teach after the burn-in."""
    with_peers: bool
    """True if these are the other groups."""
    made: int
    """Last step without teachers."""
    noise: list[tuple[float, float]]
    """Estimates of |G|² and of tr Σ, the squared gradient and the variance of one example's."""
    gaps: list[float]
    """Ensemble gaps in nats; empty where groups have no peers."""
    validations: list[Curve]
    """Validation losses of each group."""
    losses: list[Curve]
    """Training losses of each group."""
    last_loss: float
    """Mean validation loss after `last_validation` steps."""
    last_validation: int
    passes: float
    """Passes over a group's training data in `made` steps."""
    train_validation_gap: float
    """Validation loss less training loss, in nats; NaN where it was not recorded."""
    parts: dict[str, list[float]]
    """Measured seconds per step, by part."""
    teacher_seconds: list[float]
    """Measured seconds per step and teacher, from the steps in which teachers taught; empty if none did."""


def read_pilot(runs: Sequence[Path]) -> Pilot:
    """Read a pilot from the metrics of runs that differ at most in their seeds and in gradient accumulation.

    Accumulation, without which one rank measures no gradient noise, makes steps longer. So the times are those of the
    runs that accumulate least.

    Args:
        runs: run folders; runs may be going on, or have gone on with teachers.

    Raises:
        UserError: the runs have no metrics, or are of different data or settings; one is named twice; the pilot is too
            short; or its measurements are not finite.
    """
    folders = [run.resolve() for run in runs]
    if twice := next((run for run in runs if folders.count(run.resolve()) > 1), None):
        raise UserError(f"{twice} is named twice, and would count as two pilots; name each run once")
    metrics = [group for run in runs for group in read_run(run)]
    settings, *_ = map(_codistill, metrics)
    _require_same(metrics)
    first = metrics[0]
    burn_in, teaches = settings["burn_in"], bool(settings.get("weight"))
    steps = [record["step"] for group in metrics for record in group.records]
    made = min(max(steps, default=0), burn_in if teaches else sys.maxsize)
    half = made / 2
    second = [[r for r in group.records if half <= r["step"] <= made] for group in metrics]
    validations = [_curve(records, "validation_loss") for records in second]
    last = [curve[-1] for curve in validations if curve]
    _require_finite(metrics, made)
    gradients = [group.number("parts") for group in metrics]
    is_timed = [each == min(gradients) for each in gradients]
    count = first.number("config.groups")
    pilot = Pilot(
        groups=count,
        ranks=first.number("ranks_per_group"),
        batch=first.number("config.data.batch_size"),
        unit=str(first.header.get("unit", "example")),
        device=str(first.header.get("device", "cpu")),
        cores=first.number("cores"),
        ranks_on_node=first.number("ranks_on_node"),
        gradient_bytes=first.number("gradient_bytes"),
        steps=first.number("config.train.steps"),
        burn_in=burn_in,
        teaches=teaches,
        with_peers=teaches and count > 1 and settings.get("teachers") == "peers",
        made=made,
        noise=[(r[NOISE[0]], r[NOISE[1]]) for r in _with(second, *NOISE)],
        gaps=[r["ensemble_gap"] for r in _with(second, "ensemble_gap")],
        validations=validations,
        losses=[curve for records in second if (curve := _curve(records, "loss"))],
        last_loss=fmean([loss for _, loss in last] or [math.nan]),
        last_validation=max((step for step, _ in last), default=0),
        passes=max((r["passes"] * made / max(r["step"], 1) for r in _with(second, "passes")), default=0.0),
        train_validation_gap=_last(second, "train_validation_gap"),
        parts=_part_seconds(compress(second, is_timed)),
        teacher_seconds=_teacher_seconds(compress(metrics, is_timed), burn_in) if teaches else [],
    )
    _require_micro_batches(gradients)
    _require_length(pilot, metrics)
    return pilot


def slope_curves(pilot: Pilot) -> tuple[str, list[Curve]]:
    """Return the name and the values of those losses whose slope tells how fast the validation loss falls.

    They are the validation losses. Where these are few and no example was seen twice, the training losses do as well.
    """
    if _count(pilot.validations) >= len(pilot.validations) + 1 + FREEDOM:
        return "validation losses", [curve for curve in pilot.validations if curve]
    return "training losses", pilot.losses


def _codistill(metrics: GroupMetrics) -> dict[str, Any]:
    """Return the section `codistill` of the run's configuration.

    Raises:
        UserError: the first line does not tell it.
    """
    settings = metrics.fact("config.codistill")
    if not isinstance(settings, dict) or not isinstance(settings.get("burn_in"), int):
        raise metrics.damage("config.codistill")
    return settings


def _curve(records: Iterable[Record], key: str) -> Curve:
    return [(r["step"], r[key]) for r in records if r["step"] and key in r and math.isfinite(r[key])]


def _with(records: Iterable[Iterable[Record]], *keys: str) -> Iterator[Record]:
    """Yield the records in which all `keys` have finite numbers."""
    for of_group in records:
        for record in of_group:
            values = [record.get(key) for key in keys]
            if all(isinstance(value, int | float) and math.isfinite(value) for value in values):
                yield record


def _last(records: Iterable[Iterable[Record]], key: str) -> float:
    """Return the mean over the groups of their last value of `key`; NaN if none has any."""
    values = [[r[key] for r in _with([of_group], key)][-1:] for of_group in records]
    return fmean([value for last in values for value in last] or [math.nan])


def _part_seconds(records: Iterable[Iterable[Record]]) -> dict[str, list[float]]:
    recorded = [record.get("part_seconds", {}) for of_group in records for record in of_group]
    measured = [seconds for seconds in recorded if set(PARTS) <= seconds.keys()]
    return {part: [seconds[part] for seconds in measured] for part in PARTS}


def _teacher_seconds(metrics: Iterable[GroupMetrics], burn_in: int) -> list[float]:
    """Return the seconds per step and teacher of each record, of those without steps of the burn-in."""
    records = [r for group in metrics for r in group.records if r.get("staleness")]
    taught = [r for r in records if r["step"] - r.get("steps", 0) >= burn_in]
    seconds = [(r.get("part_seconds", {}), len(r["staleness"])) for r in taught]
    return [parts["teachers"] / teachers for parts, teachers in seconds if "teachers" in parts]


def _count(curves: Iterable[Curve]) -> int:
    return sum(map(len, curves))


def _require_same(metrics: Sequence[GroupMetrics]) -> None:
    first = metrics[0]
    for other in metrics[1:]:
        for name in SAME:
            one, another = first.fact(name), other.fact(name)
            if one == another:
                continue
            text = f"{other.path} is of another training than {first.path}"
            remedy = "name runs that differ in nothing but --seed and --train.accumulate"
            if other.path.parent == first.path.parent:
                text = f"groups {first.group} and {other.group} of {first.path.parent} are not alike"
                remedy = "train a pilot whose groups have equal ranks, data and settings"
            raise UserError(f"{text}: {name} is {_short(another)}, not {_short(one)}; {remedy}")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _require_finite(metrics: Sequence[GroupMetrics], made: int) -> None:
    for group in metrics:
        for record in (record for record in group.records if record["step"] <= made):
            loss = record.get("validation_loss", 0.0)
            skipped = record.get("noise_skipped", 0)
            if not math.isfinite(loss) or skipped:
                step = record["step"]
                found = f"the validation loss of step {step} is"
                if skipped:
                    found = f"of the gradient noise measurements up to step {step}, {skipped} are"
                raise UserError(
                    f"{group.path}: {found} not finite, so no plan can be made; lower --optimizer.lr, or set "
                    "--train.clip_norm, and train the pilot again"
                )


def _require_micro_batches(gradients: Sequence[int]) -> None:
    if max(gradients) == 1:
        raise UserError(
            "the gradient noise was not measured, because a step of a group has one gradient only (one rank, "
            "train.accumulate = 1), and it takes two; train with --train.accumulate=2, which keeps the batch"
        )


def _require_length(pilot: Pilot, metrics: Sequence[GroupMetrics]) -> None:
    """Check that the pilot has measured enough.

    Raises:
        UserError: it has not; the message tells what is missing, and the steps that it takes.
    """
    validate_every = metrics[0].number("config.train.validate_every")
    count = len(metrics)
    noisy = [group for group in metrics if group.number("parts") > 1]
    checks = [  # name, number found, least number, groups that measure, steps from one measurement to the next
        ("noise measurements", len(pilot.noise), NOISE_MEASUREMENTS, len(noisy), _noise_every(noisy[0])),
        ("step times", len(pilot.parts["compute"]), 2, count, 10),
        ("validations", _count(pilot.validations), 1, count, validate_every),
    ]
    if pilot.with_peers:
        checks.append(("ensemble gaps", len(pilot.gaps), GAP_MEASUREMENTS, count, validate_every))
    checks.append(("training losses", _count(pilot.losses), RECORDS * count, count, 10))
    if slope_curves(pilot)[1] is pilot.losses and pilot.passes > 1:
        checks.append(("validations", _count(pilot.validations), count + 1 + FREEDOM, count, validate_every))
    missing = [f"{found} of {least} {name}" for name, found, least, _, _ in checks if found < least]
    if not missing:
        return
    needs = [(math.ceil(least / groups), every) for _, _, least, groups, every in checks]
    more = _sufficient(pilot.made + 10, needs) - pilot.made
    if pilot.teaches and pilot.made >= pilot.burn_in:
        remedy = f"train a pilot with --train.steps={pilot.made + more} --codistill.burn_in={pilot.made + more}"
    elif pilot.made >= pilot.steps:
        remedy = f"go on with --resume --train.steps={pilot.made + more}"
    else:
        remedy = "wait for them"
    text = " and ".join(missing)
    often = ", or lower --train.validate_every" if "validations" in text or "gaps" in text else ""
    raise UserError(
        f"{metrics[0].path.parent} is too short for a plan: the second half of its {pilot.made} steps before teachers "
        f"teach has {text}; it takes {more} steps more: {remedy}{often}"
    )


def _sufficient(steps: int, needs: Sequence[tuple[int, int]]) -> int:
    """Return the least number of steps, `steps` or more, whose second half has enough measurements of each kind.

    Args:
        steps: lower bound.
        needs: for each kind, the least number of measurements in a group, and the steps from one to the next.
    """
    # There are n // e - ceil(n / 2e) + 1 multiples of e from n / 2 to n.
    while rare := [every for least, every in needs if steps // every + -steps // (2 * every) + 1 < least]:
        steps = max(steps // every * every + every for every in rare)
    return steps


def _noise_every(metrics: GroupMetrics) -> int:
    """Return the mean number of steps from one noise measurement to the next."""
    steps, _ = metrics.column(NOISE[1])
    return max(1, (steps[-1] - steps[0]) // (len(steps) - 1)) if len(steps) > 1 else NOISE_EVERY
