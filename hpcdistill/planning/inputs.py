"""Inputs of a plan: what the pilot has measured and what is assumed, with intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hpcdistill.errors import UserError
from hpcdistill.planning import draws, laws
from hpcdistill.planning.draws import Draws, Interval, interval
from hpcdistill.planning.pilot import Pilot, slope_curves

SEED = 0
LONGER = 10
"""Length of the training in units of the pilot, where neither the pilot nor the user tells it."""


@dataclass(frozen=True)
class Source:
    """Value of an input, and where it comes from."""

    name: str
    value: Interval | None
    """None if it is not known."""
    unit: str
    origin: str
    """ "measured" or "assumed", and how."""

    def cells(self) -> list[str]:
        """Return the cells of a table's row."""
        return [self.name, "-" if self.value is None else f"{self.value} {self.unit}".rstrip(), self.origin]


@dataclass(frozen=True)
class Inputs:
    """Numbers from which a plan is computed."""

    pilot: Pilot
    link: laws.Link | None
    """Network given by the user."""
    steps: int
    """Steps of one group with the pilot's ranks to the target."""
    steps_origin: str
    """Origin of `steps`."""
    noise_scale: Draws
    """In examples; infinite where the gradient could not be told from its noise."""
    noise_share: Draws
    """Bn / (B + Bn)."""
    gap: Draws | None
    """Ensemble gap of the pilot's groups, in nats; None if they have no peers."""
    earned: Draws
    """Share η of the gap."""
    slope: Draws
    """λ of the validation loss, in nats."""
    training_slope: Draws
    """λ of the training loss, in nats."""
    parts: dict[str, Draws]
    """Seconds per step, by part."""
    teacher: Draws
    """Seconds per step and teacher."""

    @property
    def burn_in(self) -> int:
        """Steps before groups teach each other."""
        return min(self.pilot.burn_in, self.steps)

    @property
    def passes(self) -> float:
        """Passes over a group's data in `steps`."""
        return self.pilot.passes * self.steps / self.pilot.made

    @property
    def target(self) -> Draws:
        """Validation loss after `steps`, in nats."""
        target: Draws = self.pilot.last_loss - self.slope * np.log(self.steps / self.pilot.last_validation)
        return target

    def step_seconds(self, groups: int, factor: int, teachers: int) -> Draws:
        """Return the seconds per step of `groups`, each with `factor` times the pilot's ranks.

        Args:
            groups: number of groups, which publish to all others.
            factor: ranks of a group, in units of the pilot's.
            teachers: number of each group's teachers; 0 during the burn-in.
        """
        pilot = self.pilot
        ranks = factor * pilot.ranks
        busy = self._load(groups * ranks) / self._load(pilot.groups * pilot.ranks)
        own = self.parts["compute"] + self.parts["data"] + teachers * self.teacher
        exchange = self.parts["exchange"] * (groups - 1) / max(1, pilot.groups - 1)
        return busy * own + exchange + self._averaging(ranks)

    def _load(self, total: int) -> float:
        """Return the ranks on each core, at least 1, in a world of `total` ranks."""
        pilot = self.pilot
        if pilot.device != "cpu":
            return 1.0
        on_node = total if self._is_one_node else min(total, pilot.ranks_on_node)
        return max(1.0, on_node / pilot.cores)

    @property
    def _is_one_node(self) -> bool:
        """True if all ranks share the pilot's node; otherwise more ranks get more nodes."""
        return self.link is None and self.pilot.ranks_on_node >= self.pilot.groups * self.pilot.ranks

    def _averaging(self, ranks: int) -> Draws:
        """Return the seconds per step in which gradients are averaged over `ranks` ranks."""
        pilot, measured = self.pilot, self.parts["averaging"]
        if ranks <= pilot.ranks:
            return measured
        if self.link is None and pilot.ranks > 1:
            return measured * (1 - 1 / ranks) / (1 - 1 / pilot.ranks)
        return measured + laws.averaging_seconds(ranks, pilot.gradient_bytes, self.link or laws.ASSUMED_LINK)

    def sources(self) -> list[Source]:
        """Return all inputs with their values and origins."""
        pilot = self.pilot
        measured = f"measured, steps {math.ceil(pilot.made / 2)} to {pilot.made}"
        slope = f"{measured}, from {slope_curves(pilot)[0]}"
        seconds = sum(self.parts.values(), start=draws.constant(0.0))
        gap = Source("ensemble gap", None, "nats", "not measured: the pilot has no peers")
        if self.gap is not None:
            gap = Source(f"ensemble gap of {pilot.groups} groups", interval(self.gap), "nats", measured)
        teacher = "measured" if pilot.teacher_seconds else "assumed: a third of the computation"
        return [
            Source("gradient noise scale", interval(self.noise_scale), "examples", measured),
            Source("slope of the loss, -dL/d ln(step)", interval(self.slope), "nats", slope),
            gap,
            Source("share of the gap that a group earns", interval(self.earned), "", self._share()),
            Source("step", interval(seconds), "s", measured),
            Source("a teacher in a step", interval(self.teacher), "s", teacher),
            Source("averaging of twice the ranks", interval(self._averaging(2 * pilot.ranks)), "s", self._network()),
            Source("ranks on each core", exact(self._load(pilot.groups * pilot.ranks)), "", self._cores()),
            Source("steps of the training", exact(self.steps), "", self.steps_origin),
            Source("steps of the burn-in", exact(self.burn_in), "", "as configured"),
        ]

    def _share(self) -> str:
        passes = "at most one pass" if self.passes <= 1 else "several passes"
        return f"assumed, for {passes} over the data"

    def _network(self) -> str:
        if self.link is not None:
            return "computed for --link"
        if self.pilot.ranks > 1:
            return f"assumed: in proportion to that of {self.pilot.ranks} ranks, which was measured"
        return "assumed: 10 Gbit/s Ethernet; --link tells another network"

    def _cores(self) -> str:
        pilot = self.pilot
        if pilot.device != "cpu":
            return "assumed: each rank has a device of its own"
        more = "share these" if self._is_one_node else "get more nodes"
        return f"measured: {pilot.ranks_on_node} ranks on a node with {pilot.cores} cores; assumed: more ranks {more}"


def estimate(pilot: Pilot, steps: int | None, link: laws.Link | None) -> Inputs:
    """Estimate the inputs of a plan.

    Args:
        pilot: the measurements.
        steps: length of the planned training; None for that of the pilot's configuration.
        link: network that larger groups span.

    Raises:
        UserError: the planned training is not longer than the pilot.
    """
    rng = np.random.default_rng(SEED)
    square, variance = (np.maximum(draw, 0.0) for draw in draws.pair_means(rng, pilot.noise))
    known = square > 0
    length, origin = _length(pilot, steps)
    parts = {part: np.maximum(draws.mean(rng, values), 0.0) for part, values in pilot.parts.items()}
    _, curves = slope_curves(pilot)
    teacher = draws.mean(rng, pilot.teacher_seconds) if pilot.teacher_seconds else parts["compute"] * laws.FORWARD
    return Inputs(
        pilot=pilot,
        link=link,
        steps=length,
        steps_origin=origin,
        noise_scale=np.where(known, variance / np.where(known, square, 1.0), np.inf),
        noise_share=variance / np.maximum(pilot.batch * square + variance, np.finfo(np.float64).tiny),
        gap=np.maximum(draws.mean(rng, pilot.gaps), 0.0) if pilot.gaps else None,
        earned=laws.earned_share(rng, pilot.passes * length / pilot.made),
        slope=draws.slope(rng, curves),
        training_slope=draws.slope(rng, pilot.losses),
        parts=parts,
        teacher=np.maximum(teacher, 0.0),
    )


def exact(value: float) -> Interval:
    """Return the interval of a number that is known."""
    return Interval(value, value, value)


def _length(pilot: Pilot, steps: int | None) -> tuple[int, str]:
    """Return the steps of the planned training, and their origin.

    Raises:
        UserError: it ends before the pilot does.
    """
    if steps is not None:
        if steps < pilot.made:
            raise UserError(
                f"--steps {steps} is less than the {pilot.made} steps of the pilot; give the steps of the whole "
                "training, or leave it out"
            )
        return steps, "as given"
    if pilot.groups == 1 or pilot.steps > pilot.burn_in:
        return pilot.steps, "as configured"
    return LONGER * pilot.made, f"assumed: {LONGER} times the pilot's; --steps tells another length"
