"""Regimes in which the verdicts of `hpcdistill plan` are judged: pilots, and the full trainings of studies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import geometric_mean

import equal_cost
import study_link
import study_little_data
import study_saturated
from study import ALONE, CLICKS, LANGUAGE_BURN_IN, LANGUAGE_STEPS, TEXT, Run

CLICK_OPTIONS = ("--optimizer.lr=2e-3", "--optimizer.weight_decay=0", "--train.average=0", "--codistill.weight=1")
"""Options of the click model, whatever its configuration says."""
LINKS = {"unlimited": "", "1 Gbit/s": "0.125,100", "100 Mbit/s": "0.0125,100", "20 Mbit/s": "0.0025,100"}
"""Network between two nodes for `--link`, by its name in the study of slow links."""
LINK_TIMES = "link-cpu"
"""File with the results of that study, times of steps among them."""
TWO = equal_cost.Arm("two", groups=2, teachers=1)
"""Two codistilling groups in studies of equal cost."""
SEEDS = range(5)
"""Seeds of this study's own full trainings."""


@dataclass(frozen=True)
class Regime:
    """Task, batch size and schedule, with the places of its full trainings."""

    name: str
    folder: str
    """Folder of its trainings; regimes that differ in their schedule share it, and so the pilots."""
    workload: str
    """Name of its configuration in configs/."""
    batch: int
    steps: int
    """Steps of the full training of one group with batch B."""
    burn_in: int
    """Steps before teachers teach in the full training of two groups."""
    seeds: Sequence[int]
    """Seeds of the full trainings."""
    options: tuple[str, ...] = ()
    """Options of the pilots and of the full trainings."""
    source: str = ""
    """File with the results of the study that has made the full trainings; without it, they are made here."""
    names: tuple[str, str, str] = ("one-{seed}", "double-{seed}", "two-{seed}")
    """Names of the full trainings of one group, of one with twice the batch, and of two groups; * stands for the
    settings that the study has found best."""
    pilot_steps: int = 300
    pilot_seeds: Sequence[int] = range(1)
    link: str = ""
    """Network that a larger group spans, for `--link`."""
    rate: str = ""
    """Name of that network in the study, which has measured the times of steps there."""

    def pilots(self) -> list[Run]:
        """Return the pilots, which regimes that differ in their schedules share.

        Where the times of steps were measured, one more pilot does without accumulation, as the full trainings do.
        """
        shared = (
            *(*self.options, f"--data.batch_size={self.batch}", "--groups=2", "--optimizer.decay=none"),
            *(f"--train.steps={self.pilot_steps}", f"--codistill.burn_in={self.pilot_steps}"),
            "--train.validate_every=25",
        )
        seeds = {f"pilot-{seed}" if seed else "pilot": f"--seed={seed}" for seed in self.pilot_seeds}
        options = {name: (*shared, seed, "--train.accumulate=2") for name, seed in seeds.items()}
        if self.rate:
            options["timed"] = (*shared, f"--seed={len(seeds)}")
        return [Run(f"{self.folder}/{name}", self.workload, each, ranks=2) for name, each in options.items()]

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
        burn_in = f"--codistill.burn_in={self.burn_in}"
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


def regimes() -> list[Regime]:
    """Return all regimes."""
    clicks = tuned(study_little_data.clicks(), f"clicks, {study_little_data.CLICK_ROWS:,} rows")
    text = tuned(study_little_data.text(None), f"text, {study_little_data.TEXT_BYTES:,} bytes")
    return [*language(), *own(), *links(), clicks, text, saturated()]


def language() -> Iterator[Regime]:
    """Yield the regimes of the language model on one node, whose full trainings are those of three studies."""
    text = f"--data.path={TEXT}"
    for batch, seeds in ((8, 1), (32, 5), (128, 1)):
        for decay in ("none", "cosine"):
            names = (f"1x{batch}-{decay}-{{seed}}", f"1x{2 * batch}-{decay}-{{seed}}", f"2x{batch}-{decay}-{{seed}}")
            yield Regime(
                name=f"language, B = {batch}, {decay}",
                folder=f"language-{batch}",
                workload="language",
                batch=batch,
                steps=LANGUAGE_STEPS,
                burn_in=LANGUAGE_BURN_IN,
                seeds=range(seeds),
                options=(text,),
                source="batch-cpu",
                names=names,
            )
    yield Regime(
        name="language, B = 16, cosine",
        folder="language-16",
        workload="language",
        batch=16,
        steps=LANGUAGE_STEPS,
        burn_in=LANGUAGE_BURN_IN,
        seeds=range(3),
        options=(text,),
        source="baselines-cpu",
        names=("one-{seed}", "double-{seed}", "codistil-{seed}"),
    )
    yield Regime(
        name="language, B = 16, averaged",
        folder="language-16-averaged",
        workload="language",
        batch=16,
        steps=LANGUAGE_STEPS,
        burn_in=LANGUAGE_BURN_IN,
        seeds=range(5),
        options=(text, "--train.average=0.99"),
        source="beyond-cpu",
        names=("one-averaged-{seed}", "one-twice_the_batch-averaged-{seed}", "two_codistilled-averaged-{seed}"),
    )


def own() -> Iterator[Regime]:
    """Yield the regimes whose full trainings are this study's."""
    many = (f"--data.path={CLICKS}", "--data.partition=disjoint", *CLICK_OPTIONS)
    yield Regime("clicks, B = 64", "clicks-64", "clicks", 64, 900, 180, SEEDS, many)
    for rows, steps, folder in (
        (5000, 900, "clicks-5000"),
        (20_000, 1600, "clicks-few"),
        (50_000, 1600, "clicks-50000"),
    ):
        few = (f"--data.path={study_little_data.prepare_rows(rows)}", "--data.partition=same", *CLICK_OPTIONS)
        yield Regime(f"clicks, {rows:,} rows", folder, "clicks", 128, steps, steps // 5, SEEDS, few)
    rule = study_saturated.REGIME.workload
    yield Regime("a rule without noise, B = 1024", "rule", rule, 1024, 400, 80, SEEDS, ("--optimizer.lr=3e-2",))
    slow = ("--optimizer.lr=1e-3", "--optimizer.decay=none")
    yield Regime("a rule without noise, B = 16384, low rate", "rule-16384-slow", rule, 16384, 400, 80, SEEDS, slow)


def links() -> Iterator[Regime]:
    """Yield the regimes of two nodes with a link between them, with the times that the study of slow links measured.

    With a high rate a model is soon at a floor, below which teachers help it; these trainings are this script's own.
    """
    own = Regime(
        name="language, hidden 128, rate 0.03",
        folder="language-high",
        workload="language",
        batch=study_link.BATCH,
        steps=1200,
        burn_in=240,
        seeds=SEEDS,
        options=(*study_link.MODEL, "--train.average=0", "--optimizer.lr=3e-2", "--codistill.weight=1"),
    )
    averaged = Regime(
        name="language, hidden 128, averaged",
        folder="language-link",
        workload="language",
        batch=study_link.BATCH,
        steps=study_link.STEPS,
        burn_in=study_link.BURN_IN,
        seeds=study_link.SEEDS,
        options=(*study_link.MODEL, f"--codistill.weight={study_link.WEIGHT}"),
        source=LINK_TIMES,
        names=("16x1-{seed}", "32x1-{seed}", "16x2-{seed}"),
    )
    for regime, rates in ((averaged, LINKS), (own, ("1 Gbit/s", "100 Mbit/s"))):
        for rate in rates:
            yield replace(regime, name=f"{regime.name}, link {rate}", link=LINKS[rate], rate=rate)


def tuned(little: equal_cost.Regime, name: str) -> Regime:
    """Return a regime of the study of little data, in which each use is tuned over the rate and the weight decay.

    The pilot has the geometric means of the rates and of the weight decays that were tried. Of the weights of two
    codistilling groups, 1 was the better one for the seed of the tuning in each regime.
    """
    rate, decay = geometric_mean(little.rates), geometric_mean(little.decays)
    return Regime(
        name=f"{name}, tuned",
        folder=f"{little.name}-tuned",
        workload=little.workload,
        batch=little.batch,
        steps=little.cost // equal_cost.TRAINING,
        burn_in=equal_cost.affordable(TWO, little.cost, little.burn_in)[1],
        seeds=range(1, 6),
        options=(*little.options, f"--optimizer.lr={rate:.2g}", f"--optimizer.weight_decay={decay:.2g}"),
        source=f"little_data-{little.name}-cpu",
        names=(
            f"{little.name}/one-lr*-{{seed}}",
            f"{little.name}/double-lr*-{{seed}}",
            f"{little.name}/codistilled1-lr*-{{seed}}",
        ),
    )


def saturated() -> Regime:
    """Return the regime in which a doubled batch saves little, each use tuned over the rate.

    Its one group has half of the cost of the other two uses, which have twice the ranks, and so the same time.
    """
    rule = study_saturated.REGIME
    return Regime(
        name=f"a rule without noise, B = {rule.batch}, tuned",
        folder=f"rule-{rule.batch}",
        workload=rule.workload,
        batch=rule.batch,
        steps=study_saturated.STEPS,
        burn_in=equal_cost.affordable(TWO, rule.cost, rule.burn_in)[1],
        seeds=study_saturated.SEEDS,
        options=(f"--optimizer.lr={rule.rates[1]:g}",),
        source="saturated-cpu",
        names=("half/one-lr*-{seed}", "rule/doubled-lr*-{seed}", "rule/two-lr*-{seed}"),
        pilot_steps=study_saturated.STEPS,
        pilot_seeds=range(3),
    )
