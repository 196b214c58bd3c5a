"""Verdicts of `hpcdistill plan` from short pilots, judged by what full trainings showed.

Each regime has a pilot of two groups that never teach each other, at a constant learning rate, and full trainings of
one group with batch B, of one with 2B, and of two codistilling groups with B each: those of the studies in
benchmarks/results/studies, or trainings of this script's own. The table goes into docs/planning.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from hpcdistill.errors import UserError
from hpcdistill.planning.draws import Interval
from hpcdistill.planning.plan import Plan, plan
from hpcdistill.planning.verdict import ANOTHER_GROUP, MORE_WORKERS, NEITHER, PAYS, REGULARIZE
from study import (
    ALONE,
    CLICKS,
    RESULTS,
    ROOT,
    TEXT,
    Run,
    Study,
    curve,
    format_mean,
    markdown,
    prepare_clicks,
    prepare_text,
)

PAGE = ROOT / "docs" / "planning.md"
BEGIN, END = "<!-- judged -->", "<!-- end of judged -->"
PILOT_STEPS = 300
PILOT = (
    *(f"--train.steps={PILOT_STEPS}", f"--codistill.burn_in={PILOT_STEPS}", "--train.accumulate=2"),
    *("--train.validate_every=25", "--optimizer.decay=none", "--groups=2"),
)
CLICK_OPTIONS = (
    *(f"--data.path={CLICKS}", "--data.partition=disjoint", "--optimizer.lr=2e-3", "--optimizer.weight_decay=0"),
    *("--train.average=0", "--codistill.weight=1"),
)
"""Options of the click model, whatever its configuration says."""
TEACHER = 1 / 3
"""Cost of a teacher in a step, relative to a step of one group."""
RISES = 0.01
"""Relative rise of the validation loss after its lowest value from which a model has overfitted."""
TITLES = (
    *(
        "regime",
        "noise scale / B",
        "ensemble gap",
        "predicted time, 2B",
        "found",
        "predicted time, two groups",
        "found",
    ),
    *("verdict of the pilot", "full trainings", "right"),
)

Curve = dict[str, Any]
"""Steps and validation losses of one group, as in the results of studies."""


@dataclass(frozen=True)
class Regime:
    """Task, batch size and schedule, with the places of its full trainings."""

    name: str
    folder: str
    """Folder of its trainings; regimes that differ in their schedule share it, and so the pilot."""
    workload: str
    """Name of its configuration in configs/."""
    batch: int
    steps: int
    seeds: int
    options: tuple[str, ...] = ()
    """Options of the pilot and of the full trainings."""
    source: str = ""
    """File with the results of the study that has made the full trainings; without it, they are made here."""
    names: tuple[str, str, str] = ("one-{seed}", "double-{seed}", "two-{seed}")
    """Names of the full trainings of one group, of one with twice the batch, and of two groups."""

    def pilot(self) -> Run:
        """Return the pilot, which regimes that differ in their schedules share."""
        options = (*self.options, f"--data.batch_size={self.batch}", *PILOT)
        return Run(f"{self.folder}/pilot", self.workload, options, ranks=2)

    def trainings(self, seed: int) -> list[Run]:
        """Return the full trainings of a seed; none where a study has made them."""
        if self.source:
            return []
        shared = (
            *self.options,
            f"--train.steps={self.steps}",
            f"--seed={seed}",
            f"--train.validate_every={self.steps // 30}",
        )
        burn_in = f"--codistill.burn_in={self.steps // 5}"
        kinds = ((1, self.batch, ALONE), (1, 2 * self.batch, ALONE), (2, self.batch, (burn_in,)))
        return [
            Run(
                f"{self.folder}/{name.format(seed=seed)}",
                self.workload,
                (*shared, f"--data.batch_size={batch}", *options),
                groups,
            )
            for name, (groups, batch, options) in zip(self.names, kinds, strict=True)
        ]


def language(
    name: str, folder: str, batch: int, seeds: int, source: str, names: tuple[str, str, str], *options: str
) -> Regime:
    """Return a regime of the language model whose full trainings are a study's."""
    return Regime(name, folder, "language", batch, 1500, seeds, (f"--data.path={TEXT}", *options), source, names)


def regimes() -> list[Regime]:
    """Return all regimes."""
    found = []
    for batch, seeds in ((8, 1), (32, 5), (128, 1)):
        for decay in ("none", "cosine"):
            names = (f"1x{batch}-{decay}-{{seed}}", f"1x{2 * batch}-{decay}-{{seed}}", f"2x{batch}-{decay}-{{seed}}")
            found.append(
                language(f"language, B = {batch}, {decay}", f"language-{batch}", batch, seeds, "batch-cpu", names)
            )
    names = ("one-{seed}", "double-{seed}", "codistil-{seed}")
    found.append(language("language, B = 16, cosine", "language-16", 16, 3, "baselines-cpu", names))
    names = ("one-averaged-{seed}", "one-twice_the_batch-averaged-{seed}", "two_codistilled-averaged-{seed}")
    average = "--train.average=0.99"
    found.append(language("language, B = 16, averaged", "language-16-averaged", 16, 5, "beyond-cpu", names, average))
    for batch in (64, 2048):
        found.append(Regime(f"clicks, B = {batch}", f"clicks-{batch}", "clicks", batch, 900, 2, CLICK_OPTIONS))
    return found


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


def find_truth(one: Curve, double: Curve, two: Sequence[Curve]) -> Truth:
    """Compare full trainings of one seed.

    Args:
        one: one group with batch B.
        double: one group with 2B.
        two: both codistilling groups.
    """
    losses = one["validation_loss"]
    best = min(losses)
    alone = reached(one, best)
    costs = [reached(each, best) / alone * (1 + TEACHER) for each in two]
    return Truth(reached(double, best) / alone, fmean(costs), losses[-1] > (1 + RISES) * best)


def reached(of_group: Curve, target: float) -> float:
    """Return the steps to a validation loss, interpolated linearly; infinite if it was not reached."""
    before: tuple[int, float] | None = None
    for step, loss in zip(of_group["steps"], of_group["validation_loss"], strict=True):
        if loss <= target:
            if before is None or before[1] == loss:
                return float(step)
            return float(before[0] + (step - before[0]) * (before[1] - target) / (before[1] - loss))
        before = (step, loss)
    return float("inf")


@dataclass(frozen=True)
class Judged:
    """Verdict of a pilot beside the truth."""

    regime: str
    plan: Plan | None
    """None if the pilot did not suffice."""
    truths: list[Truth]

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
            "-" if noise is None else f"{noise.value / batch:.2g}",
            "-" if gap is None else f"{gap.value:.3f}",
            format_interval(relative[1, 2]),
            found[0],
            format_interval(relative[2, 1]),
            found[1],
            short_answer(self.plan.verdict.answer),
            answers,
            "yes" if self.is_right else "**no**",
        )


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
        found = plan([study.folder(regime.pilot().name)], steps=regime.steps)
    except UserError as error:
        print(f"{regime.name}: {error}")
        found = None
    results = json.loads((RESULTS / f"{regime.source}.json").read_text())["runs"] if regime.source else {}
    truths = []
    for seed in range(regime.seeds):
        curves: list[Any] = [results.get(name.format(seed=seed)) for name in regime.names]
        if not regime.source:
            curves = [[curve(group) for group in study.metrics(run.name)] for run in regime.trainings(seed)]
        (one,), (double,), two = curves
        truths.append(find_truth(one, double, two))
    return Judged(regime.name, found, truths)


def replace_section(page: str, content: str) -> str:
    """Return a page with `content` between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{content}\n{END}{after}"


def summary(judged: Iterable[Judged]) -> str:
    """Return the table in Markdown, and the number of right verdicts."""
    judged = list(judged)
    right = sum(each.is_right for each in judged)
    return f"{markdown(TITLES, [each.cells() for each in judged])}\n\nRight: {right} of {len(judged)}."


def main() -> None:
    """Train pilots and the full trainings that no study has made, and write the table."""
    study = Study("plans", __doc__)
    prepare_text()
    prepare_clicks()
    chosen = regimes()
    full = [run for regime in chosen for seed in range(regime.seeds) for run in regime.trainings(seed)]
    runs = study.train([*(regime.pilot() for regime in chosen), *full])
    judged = [judge(study, regime) for regime in chosen]
    text = summary(judged)
    PAGE.write_text(replace_section(PAGE.read_text(), text))
    study.write_results(runs, text, judged=[asdict(each) for each in judged])


if __name__ == "__main__":
    main()
