"""Verdict of a plan, in one sentence with its reason."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hpcdistill.planning.draws import Draws, constant, interval, probability, short
from hpcdistill.planning.inputs import Inputs
from hpcdistill.planning.laws import steps_after_burn_in, steps_of_batch

SURE = 0.8
"""Least share of the draws that have to agree with a verdict."""

PAYS = 0.9
"""Largest time to the loss, relative to that of one group, at which twice the ranks pay."""

GENERALIZES = 0.5
"""Least share of the fall of the training loss that the validation loss has to follow."""

MORE_WORKERS = "more workers"
ANOTHER_GROUP = "another group"
REGULARIZE = "first regularise, average weights or distil from your own past predictions"
NEITHER = "neither"
UNKNOWN = "the pilot cannot tell"


@dataclass(frozen=True)
class Verdict:
    """Answer to the question what twice the ranks are best used for."""

    answer: str
    """One of the constants of this module."""
    advice: str
    """Data and weight for another group; else empty."""
    reason: str
    churn: str
    """Price of a second group for those to whom reproducible predictions matter."""

    def sentences(self) -> list[str]:
        """Return the verdict and the sentence on churn."""
        answer = " ".join(filter(None, (self.answer, self.advice)))
        return [f"Verdict: {answer}, because {self.reason}.", self.churn]


def judge(inputs: Inputs, more_workers: Draws, another_group: Draws | None, step: Draws | None) -> Verdict:
    """Judge whether twice the ranks should enlarge the group, make a second one, or are not worth it yet.

    Args:
        inputs: what the plan is computed from.
        more_workers: time to the loss of one group with twice the ranks, relative to one group.
        another_group: time to the loss of two groups; None if the ensemble gap is not known.
        step: seconds per step of two groups, relative to one group; None likewise.
    """
    answer, reason = _answer(inputs, more_workers, another_group)
    advice = _advice(inputs) if answer == ANOTHER_GROUP else ""
    price = (
        "a teacher's forward pass in each step"
        if step is None
        else f"{short(interval(step).value)} times the time of a step"
    )
    churn = (
        "If reproducible predictions (churn) are the aim, a second group pays whatever the rest says; its price is "
        f"twice the ranks and {price}."
    )
    return Verdict(answer, advice, reason, churn)


def _answer(inputs: Inputs, workers: Draws, group: Draws | None) -> tuple[str, str]:
    """Return the answer and its reason."""
    overfits = _overfitting(inputs)
    if overfits:
        return REGULARIZE, overfits
    if probability(inputs.slope <= 0) > 1 - SURE:
        return UNKNOWN, (
            f"the validation loss neither falls nor rises clearly (slope {interval(inputs.slope)} nats per ln(step)); "
            "more steps and validations before teachers teach would decide"
        )
    steps = interval(steps_of_batch(inputs.noise_share, 2)).value
    times = (
        f"to the same loss one group with twice the ranks would take {steps:.2f} of the steps and {_times(workers)} of "
        "the time"
    )
    noise = _noise(inputs)
    if group is None:
        if probability(workers < PAYS) >= SURE:
            return MORE_WORKERS, f"{noise}, and {times}; a second group was not measured"
        return UNKNOWN, (
            f"{times}, but a second group was not measured: train a pilot of two groups that are peers (--groups=2, "
            "codistill.teachers = 'peers', codistill.weight > 0)"
        )
    both = f"{times}, two groups {_times(group)}"
    gap = f"the ensemble gap is {interval(inputs.gap)} nats" if inputs.gap is not None else ""
    if probability((workers < PAYS) & (workers < group)) >= SURE:
        return MORE_WORKERS, f"{noise}: {both}"
    if probability((group < PAYS) & (group < workers)) >= SURE:
        return ANOTHER_GROUP, f"{gap} and {noise}: {both}"
    if probability((workers >= PAYS) & (group >= PAYS)) >= SURE:
        return NEITHER, f"{noise} and {gap}: {both}"
    return UNKNOWN, f"{both}; {_decides(inputs, workers)}"


def _overfitting(inputs: Inputs) -> str:
    """Return the reason why more optimization would not lower the validation loss; empty if it would."""
    pilot = inputs.pilot
    if probability(inputs.slope <= 0) >= SURE:
        return f"the validation loss rises, by {interval(-inputs.slope)} nats per ln(step)"
    learned = inputs.slope < GENERALIZES * inputs.training_slope
    if pilot.passes > 1 and probability(learned) >= SURE:
        return (
            f"after {short(pilot.passes)} passes over the data the validation loss is "
            f"{short(pilot.train_validation_gap)} nats above the training loss, and falls by {interval(inputs.slope)} "
            f"nats per ln(step) only, the training loss by {interval(inputs.training_slope)}"
        )
    return ""


def _decides(inputs: Inputs, workers: Draws) -> str:
    """Return what would make the widest interval narrower."""
    assert inputs.gap is not None
    gap, slope, earned = (constant(interval(each).value) for each in (inputs.gap, inputs.slope, inputs.earned))
    measured = steps_after_burn_in(inputs.gap, inputs.slope, earned)
    assumed = steps_after_burn_in(gap, slope, inputs.earned)
    widths = {
        "more measurements of the noise scale, so more steps before teachers teach, would decide": _width(workers),
        "a longer pilot with more validations, for the ensemble gap and the slope, would decide": _width(measured),
        "the share of the gap that groups earn is assumed: only a run with teachers would decide": _width(assumed),
    }
    return max(widths, key=lambda each: widths[each])


def _width(draws: Draws) -> float:
    found = interval(draws)
    return found.high - found.low


def _times(draws: Draws) -> str:
    found = interval(draws)
    return f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"


def _noise(inputs: Inputs) -> str:
    """Describe the noise scale, in units of the batch."""
    found = interval(inputs.noise_scale / inputs.pilot.batch)
    if math.isinf(found.low):
        return "the gradient cannot be told from its noise"
    size = f"more than {short(found.low)}" if math.isinf(found.value) else str(found)
    return f"the gradient noise scale is {size} times the batch"


def _advice(inputs: Inputs) -> str:
    """Return the data and the weight with which another group learns."""
    is_new = inputs.passes <= 1
    data = "on disjoint data" if is_new else "on the same data"
    if not is_new:
        weight = "0.3 to 1 (many passes)"
    else:
        weight = "0.1 (language: 0.05 to 0.3)" if inputs.pilot.unit == "token" else "1"
    return f"{data} at weight {weight}"
