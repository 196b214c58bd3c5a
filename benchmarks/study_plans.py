"""Verdicts of `hpcdistill plan` from short pilots, judged by what full trainings showed.

Each regime has a pilot of two groups that never teach each other, at a constant learning rate, and full trainings of
one group with batch B, of one with 2B, and of two codistilling groups with B each: those of the studies in
benchmarks/results/studies, or trainings of this script's own. `plan_truth.py` has the rule for the right verdict. The
table goes into docs/planning.md.
"""

from __future__ import annotations

import fnmatch
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

import study_link
from hpcdistill.errors import UserError
from hpcdistill.planning.draws import Interval, short
from hpcdistill.planning.laws import Link
from hpcdistill.planning.plan import Plan, Row, plan
from hpcdistill.planning.verdict import ANOTHER_GROUP, MORE_WORKERS, NEITHER, REGULARIZE
from plan_regimes import LINK_TIMES, Regime, regimes
from plan_truth import Cost, Curve, StepTimes, Truth, find_answer, find_truth
from study import RESULTS, ROOT, Study, curve, format_mean, markdown, prepare_clicks, prepare_text

PAGE = ROOT / "docs" / "planning.md"
BEGIN, END = "<!-- judged -->", "<!-- end of judged -->"
CLOSE = 0.25
"""Largest relative error of a good prediction."""
TITLES = (
    *("regime", "seeds", "noise scale / B", "ensemble gap", "time with 2B, predicted", "found"),
    *("time of two groups, predicted", "found", "verdict of the pilot", "full trainings", "right"),
)
TIME_TITLES = ("regime", "use of the ranks", "ms per step, predicted", "measured", "quotient")
ONE, DOUBLE, TWO = "one group", "one group, 2B", "two groups"
DIVISIONS = {ONE: (1, 1), DOUBLE: (1, 2), TWO: (2, 1)}
"""Groups, and ranks of each group, of each use of the ranks; pilots have one rank in each group."""


@dataclass(frozen=True)
class Judged:
    """Verdict of a pilot beside the truth."""

    regime: str
    plan: Plan | None
    """None if the pilot did not suffice."""
    truths: list[Truth]
    """Findings of each seed."""
    answer: str
    """Right verdict."""
    is_decided: bool
    """False if the full trainings do not decide between that verdict and another one."""
    seconds: dict[str, float]
    """Measured seconds of a step by use of the ranks; empty if they were not measured."""

    @property
    def is_right(self) -> bool:
        """True if the verdict of the pilot is the right one."""
        return self.plan is not None and self.plan.verdict.answer == self.answer

    @property
    def rows(self) -> dict[str, Row]:
        """Rows of the plan by use of the ranks; empty without a plan."""
        found = {} if self.plan is None else {(row.groups, row.ranks): row for row in self.plan.rows}
        return {use: found[division] for use, division in DIVISIONS.items() if found}

    def costs(self, use: str) -> list[Cost]:
        """Return the costs of one group with 2B or of two groups, by seed."""
        return [truth.double if use == DOUBLE else truth.two for truth in self.truths]

    def cells(self) -> tuple[str, ...]:
        """Return the cells of the table."""
        noise, gap, verdict = "-", "-", "none"
        if self.plan is not None:
            inputs = {source.name.split(" of ")[0]: source.value for source in self.plan.inputs}
            scale, nats = inputs["gradient noise scale"], inputs["ensemble gap"]
            noise = "-" if scale is None else short(scale.value / self.plan.rows[0].batch)
            gap = "-" if nats is None else f"{nats.value:.3f}"
            verdict = short_answer(self.plan.verdict.answer)
        rows = self.rows
        predicted = {use: format_interval(rows[use].relative) if rows else "-" for use in (DOUBLE, TWO)}
        found = {use: format_costs(self.costs(use)) for use in predicted}
        right = ("yes" if self.is_right else "**no**") if self.is_decided else "undecided"
        return (
            *(self.regime, str(len(self.truths)), noise, gap),
            *(predicted[DOUBLE], found[DOUBLE], predicted[TWO], found[TWO]),
            *(verdict, short_answer(self.answer), right),
        )

    def quotient(self, use: str) -> float | None:
        """Return the predicted relative time to the loss, divided by the one found; None if either is not known."""
        costs = self.costs(use)
        if not self.rows or not all(cost.is_reached for cost in costs):
            return None
        quotient = self.rows[use].relative.value / fmean(cost.time for cost in costs)
        return None if math.isnan(quotient) else quotient

    def misses(self, use: str) -> bool | None:
        """Return True if the relative time found lies outside the predicted interval; None without a prediction.

        A lower bound is known to lie outside only where it is above.
        """
        costs = self.costs(use)
        if not self.rows or math.isnan(self.rows[use].relative.value):
            return None
        predicted, found = self.rows[use].relative, fmean(cost.time for cost in costs)
        return found > predicted.high or (found < predicted.low and all(cost.is_reached for cost in costs))

    def step_seconds(self) -> Iterator[tuple[str, float, float]]:
        """Yield each use of the ranks with its predicted and its measured seconds per step."""
        if self.rows:
            for use, measured in self.seconds.items():
                yield use, self.rows[use].step_seconds.value, measured


def short_answer(answer: str) -> str:
    """Return a verdict in two words."""
    return "regularise first" if answer == REGULARIZE else answer


def format_interval(value: Interval) -> str:
    """Format a predicted ratio, NaN as a dash."""
    if math.isnan(value.value):
        return "-"
    return f"{value.value:.2f} ({value.low:.2f} to {value.high:.2f})"


def format_costs(costs: Sequence[Cost]) -> str:
    """Format the mean of the seeds' costs with its 95 % interval, and the number of seeds that missed the loss."""
    text = format_mean([cost.time for cost in costs], 2)
    missing = sum(not cost.is_reached for cost in costs)
    return f"≥ {text} (not reached by {missing} of {len(costs)})" if missing else text


def judge(study: Study, regime: Regime) -> Judged:
    """Judge one regime, whose trainings are there."""
    try:
        link = Link.parse(regime.link) if regime.link else None
        pilots = [run.name for run in regime.pilots()]
        found = replace(plan([study.folder(name) for name in pilots], steps=regime.steps, link=link), runs=pilots)
    except UserError as error:
        print(f"{regime.name}: {error}")
        found = None
    trained = read_results(regime.source)["runs"] if regime.source else {}
    times, seconds = StepTimes(), dict[str, float]()
    if regime.rate:
        times, seconds = measured_times(read_results(LINK_TIMES)["times"], regime.rate)
    if regime.link:
        del seconds[ONE]  # the same over all links
    truths = []
    for seed in regime.seeds:
        if regime.source:
            curves = [find_run(trained, name.format(seed=seed)) for name in regime.names]
        else:
            curves = [[curve(group) for group in study.metrics(run.name)] for run in regime.trainings(seed)]
        (one,), (double,), two = curves
        truths.append(find_truth(one, double, two, regime.burn_in, times))
    return Judged(regime.name, found, truths, *find_answer(truths), seconds)


def read_results(source: str) -> dict[str, Any]:
    """Return the results of another study."""
    results: dict[str, Any] = json.loads((RESULTS / f"{source}.json").read_text())
    return results


def is_there(regime: Regime) -> bool:
    """Return True if the studies that a regime needs have been made; say so if not."""
    sources = {regime.source, LINK_TIMES if regime.rate else ""} - {""}
    missing = [source for source in sources if not (RESULTS / f"{source}.json").exists()]
    if missing:
        print(f"{regime.name} is left out: make {' and '.join(missing)} first")
    return not missing


def find_run(runs: dict[str, list[Curve]], pattern: str) -> list[Curve]:
    """Return the curves of the groups of the one run whose name matches.

    Raises:
        ValueError: none does, or several do.
    """
    (name,) = fnmatch.filter(runs, pattern)
    return runs[name]


def measured_times(times: Sequence[dict[str, Any]], rate: str) -> tuple[StepTimes, dict[str, float]]:
    """Return times of steps, the medians of their measurements: relative to one group, and in seconds for each use.

    Args:
        times: those of the study of slow links.
        rate: name of the link between the two nodes.
    """
    found = {
        (each["arm"], each["link"]): study_link.medians([study_link.Times(**one) for one in each["measured"]])
        for each in times
    }
    one = found[study_link.ONE_NODE.name, "unlimited"].burn_in
    double = found[study_link.ACROSS.name, rate].burn_in
    two = found[study_link.EACH.name, rate]
    return (
        StepTimes(double / one, two.burn_in / one, two.later / one),
        {ONE: one, DOUBLE: double, TWO: two.later},
    )


def replace_section(page: str, content: str) -> str:
    """Return a page with `content` between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{content}\n{END}{after}"


def summary(judged: Sequence[Judged]) -> str:
    """Return the table in Markdown, the numbers of right verdicts and predictions, and the table of step times."""
    verdicts = markdown(TITLES, [each.cells() for each in judged])
    times = [
        (each.regime, use, f"{1e3 * predicted:.1f}", f"{1e3 * measured:.1f}", f"{predicted / measured:.2f}")
        for each in judged
        for use, predicted, measured in each.step_seconds()
    ]
    text = f"{verdicts}\n\n{count_verdicts(judged)}\n\n{count_predictions(judged)}"
    return f"{text}\n\n{markdown(TIME_TITLES, times)}" if times else text


def count_verdicts(judged: Sequence[Judged]) -> str:
    """Return the numbers of right verdicts, of all and by their kinds."""
    decided = [each for each in judged if each.is_decided]
    right = Counter(each.answer for each in decided if each.is_right)
    kinds = Counter(each.answer for each in decided)
    answers = (MORE_WORKERS, ANOTHER_GROUP, REGULARIZE, NEITHER)
    by_kind = ", ".join(f"{short_answer(kind)} {right[kind]} of {kinds[kind]}" for kind in answers)
    return f"Right: {right.total()} of {len(decided)} ({by_kind}). Undecided: {len(judged) - len(decided)}."


def count_predictions(judged: Sequence[Judged]) -> str:
    """Return the numbers of good predictions of times to the loss and of a step, as a list in Markdown."""
    close = f"within {100 * CLOSE:.0f} % in"
    steps = [predicted / measured for each in judged for _, predicted, measured in each.step_seconds()]
    lines = [
        f"- time {name}: {close} {count_close([each.quotient(use) for each in judged])} regimes, found outside the "
        f"predicted interval in {count_true([each.misses(use) for each in judged])}"
        for name, use in (("with 2B", DOUBLE), ("of two groups", TWO))
    ]
    return "\n".join([*lines, f"- time of a step: {close} {count_close(steps)} cases"])


def count_true(values: Sequence[bool | None]) -> str:
    """Return how many of the known values are True."""
    known = [value for value in values if value is not None]
    return f"{sum(known)} of {len(known)}"


def count_close(quotients: Sequence[float | None]) -> str:
    """Return how many of the known quotients are close to 1."""
    return count_true([None if quotient is None else abs(quotient - 1) <= CLOSE for quotient in quotients])


def main() -> None:
    """Train pilots and the full trainings that no study has made, and write the table."""
    study = Study("plans", __doc__)
    prepare_text()
    prepare_clicks()
    chosen = [each for each in regimes() if is_there(each)]
    full = [run for regime in chosen for seed in regime.seeds for run in regime.trainings(seed)]
    runs = study.train([*(run for regime in chosen for run in regime.pilots()), *full])
    judged = [judge(study, regime) for regime in chosen]
    text = summary(judged)
    PAGE.write_text(replace_section(PAGE.read_text(), text))
    study.write_results(runs, text, judged=[asdict(each) for each in judged])


if __name__ == "__main__":
    main()
