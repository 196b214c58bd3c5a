"""Verdicts of `hpcdistill plan` from short pilots, judged by what full trainings showed.

Each regime has a pilot of two groups that never teach each other, at a constant learning rate, and full trainings of
one group with batch B, of one with 2B, and of two codistilling groups with B each: those of the studies in
benchmarks/results/studies, or trainings of this script's own. The table goes into docs/planning.md.
"""

from __future__ import annotations

import fnmatch
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean, median
from typing import Any

import study_link
from hpcdistill.errors import UserError
from hpcdistill.planning.draws import Interval, short
from hpcdistill.planning.laws import Link
from hpcdistill.planning.plan import Plan, plan
from hpcdistill.planning.verdict import ANOTHER_GROUP, MORE_WORKERS, NEITHER, PAYS, REGULARIZE
from plan_regimes import Regime, regimes
from study import RESULTS, ROOT, Study, curve, format_mean, markdown, prepare_clicks, prepare_text, reached

PAGE = ROOT / "docs" / "planning.md"
BEGIN, END = "<!-- judged -->", "<!-- end of judged -->"
TEACHER = 1 / 3
"""Cost of a teacher in a step, relative to a step of one group."""
RISES = 0.01
"""Relative rise of the validation loss after its lowest value from which a model has overfitted."""
TITLES = (
    *("regime", "noise scale / B", "ensemble gap", "time with 2B, predicted", "found"),
    *("time of two groups, predicted", "found", "verdict of the pilot", "full trainings", "right"),
)
TIME_TITLES = ("regime", "use of two ranks", "step, predicted", "measured", "quotient")

Curve = dict[str, Any]
"""Steps and validation losses of one group, as in the results of studies."""


@dataclass(frozen=True)
class Truth:
    """Findings of the full trainings of one seed."""

    double: float
    """Cost in time of one group with 2B to the lowest loss of one with B, relative to that; infinite if not reached."""
    two: float
    """Cost of two codistilling groups, a teacher's forward pass in each step included; the mean of the groups."""
    overfits: bool
    """True if the validation loss of one group with B had risen again at its end."""

    @property
    def answer(self) -> str:
        """Verdict that would have been right."""
        if self.overfits:
            return REGULARIZE
        if min(self.double, self.two) >= PAYS:
            return NEITHER
        return MORE_WORKERS if self.double <= self.two else ANOTHER_GROUP


def find_truth(
    one: Curve, double: Curve, two: Sequence[Curve], step_of_double: float = 1.0, step_of_two: float = 1 + TEACHER
) -> Truth:
    """Compare full trainings of one seed.

    Args:
        one: one group with batch B.
        double: one group with 2B.
        two: both codistilling groups.
        step_of_double: time of a step of the second, relative to the first.
        step_of_two: time of a step of the third, likewise.
    """
    losses = one["validation_loss"]
    best = min(losses)
    alone = steps_of(one, best)
    costs = [steps_of(each, best) / alone * step_of_two for each in two]
    return Truth(steps_of(double, best) / alone * step_of_double, fmean(costs), losses[-1] > (1 + RISES) * best)


def steps_of(of_group: Curve, target: float) -> float:
    """Return the steps to a validation loss; infinite if it was not reached."""
    steps = reached(of_group["steps"], of_group["validation_loss"], target)
    return math.inf if steps is None else steps


@dataclass(frozen=True)
class Judged:
    """Verdict of a pilot beside the truth."""

    regime: str
    plan: Plan | None
    """None if the pilot did not suffice."""
    truths: list[Truth]
    steps: tuple[float, float] | None = None
    """Measured time of a step of one group with 2B and of two groups, relative to one group; None if it was not."""

    @property
    def answers(self) -> list[str]:
        """Answers that at least one seed supports."""
        return sorted({truth.answer for truth in self.truths})

    @property
    def is_right(self) -> bool:
        """True if the verdict is one of the answers."""
        return self.plan is not None and self.plan.verdict.answer in self.answers

    def cells(self) -> tuple[str, ...]:
        """Return the cells of the table."""
        answers = " or ".join(map(short_answer, self.answers))
        found = [format_ratio([getattr(truth, kind) for truth in self.truths]) for kind in ("double", "two")]
        if self.plan is None:
            return (self.regime, "-", "-", "-", found[0], "-", found[1], "none", answers, "no")
        inputs = {source.name.split(" of ")[0]: source.value for source in self.plan.inputs}
        relative = {(row.groups, row.ranks): row.relative for row in self.plan.rows}
        noise, gap = inputs["gradient noise scale"], inputs["ensemble gap"]
        batch = self.plan.rows[0].batch
        return (
            self.regime,
            "-" if noise is None else short(noise.value / batch),
            "-" if gap is None else f"{gap.value:.3f}",
            format_interval(relative[1, 2]),
            found[0],
            format_interval(relative[2, 1]),
            found[1],
            short_answer(self.plan.verdict.answer),
            answers,
            "yes" if self.is_right else "**no**",
        )

    def time_cells(self) -> Iterator[tuple[str, ...]]:
        """Yield the cells of the table of step times, relative to one group."""
        if self.plan is None or self.steps is None:
            return
        rows = {(row.groups, row.ranks): row.step_seconds.value for row in self.plan.rows}
        for name, row, measured in zip(("one group, 2B", "two groups"), ((1, 2), (2, 1)), self.steps, strict=True):
            predicted = rows[row] / rows[1, 1]
            yield self.regime, name, f"{predicted:.2f}", f"{measured:.2f}", f"{predicted / measured:.2f}"


def short_answer(answer: str) -> str:
    """Return a verdict in two words."""
    return "regularise first" if answer == REGULARIZE else answer


def format_interval(value: Interval) -> str:
    """Format a predicted ratio."""
    return f"{value.value:.2f} ({value.low:.2f} to {value.high:.2f})"


def format_ratio(values: Sequence[float]) -> str:
    """Format a ratio of each seed as their mean and its interval, and the seeds in which the loss was not reached."""
    known = [value for value in values if value != float("inf")]
    missing = len(values) - len(known)
    text = format_mean(known, 2) if known else ""
    return " ".join(filter(None, [text, f"(not reached by {missing} of {len(values)})" if missing else ""]))


def judge(study: Study, regime: Regime) -> Judged:
    """Judge one regime, whose trainings are there."""
    try:
        link = Link.parse(regime.link) if regime.link else None
        pilot = regime.pilot().name
        found = replace(plan([study.folder(pilot)], steps=regime.steps, link=link), runs=[pilot])
    except UserError as error:
        print(f"{regime.name}: {error}")
        found = None
    results = read_results(regime)
    steps = step_ratios(results["times"], regime.rate) if regime.rate else (1.0, 1 + TEACHER)
    truths = []
    for seed in regime.seeds:
        if regime.source:
            curves = [find_run(results["runs"], name.format(seed=seed)) for name in regime.names]
        else:
            curves = [[curve(group) for group in study.metrics(run.name)] for run in regime.trainings(seed)]
        (one,), (double,), two = curves
        truths.append(find_truth(one, double, two, *steps))
    return Judged(regime.name, found, truths, steps if regime.rate else None)


def read_results(regime: Regime) -> dict[str, Any]:
    """Return the results of the study that has trained a regime; empty for trainings of this script."""
    return json.loads((RESULTS / f"{regime.source}.json").read_text()) if regime.source else {}


def is_there(regime: Regime) -> bool:
    """Return True if the regime's study has been made; say so if not."""
    if not regime.source or (RESULTS / f"{regime.source}.json").exists():
        return True
    print(f"{regime.name} is left out: make {regime.source} first")
    return False


def find_run(runs: dict[str, list[Curve]], pattern: str) -> list[Curve]:
    """Return the curves of the groups of the one run whose name matches.

    Raises:
        ValueError: none does, or several do.
    """
    (name,) = fnmatch.filter(runs, pattern)
    return runs[name]


def step_ratios(times: Sequence[dict[str, Any]], rate: str) -> tuple[float, float]:
    """Return the measured time of a step of one group across both nodes, and of one on each, relative to one node's.

    Args:
        times: those of the study of slow links.
        rate: name of the link.
    """
    found = {
        (each["arm"], each["link"]): {
            key: median(measured[key] for measured in each["measured"]) for key in ("burn_in", "later")
        }
        for each in times
    }
    one = found[study_link.ONE_NODE.name, "unlimited"]["burn_in"]
    return found[study_link.ACROSS.name, rate]["burn_in"] / one, found[study_link.EACH.name, rate]["later"] / one


def replace_section(page: str, content: str) -> str:
    """Return a page with `content` between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{content}\n{END}{after}"


def summary(judged: Iterable[Judged]) -> str:
    """Return the table in Markdown, and the number of right verdicts."""
    judged = list(judged)
    right = sum(each.is_right for each in judged)
    verdicts = f"{markdown(TITLES, [each.cells() for each in judged])}\n\nRight: {right} of {len(judged)}."
    times = [cells for each in judged for cells in each.time_cells()]
    return f"{verdicts}\n\n{markdown(TIME_TITLES, times)}" if times else verdicts


def main() -> None:
    """Train pilots and the full trainings that no study has made, and write the table."""
    study = Study("plans", __doc__)
    prepare_text()
    prepare_clicks()
    chosen = [each for each in regimes() if is_there(each)]
    full = [run for regime in chosen for seed in regime.seeds for run in regime.trainings(seed)]
    runs = study.train([*(regime.pilot() for regime in chosen), *full])
    judged = [judge(study, regime) for regime in chosen]
    text = summary(judged)
    PAGE.write_text(replace_section(PAGE.read_text(), text))
    study.write_results(runs, text, judged=[asdict(each) for each in judged])


if __name__ == "__main__":
    main()
