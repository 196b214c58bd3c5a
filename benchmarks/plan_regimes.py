"""Regimes in which the verdicts of `hpcdistill plan` are judged: pilots, and the full trainings of studies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import equal_cost
import study_link
import study_little_data
import study_saturated
from study import ALONE, CLICKS, TEXT, Run

PILOT_STEPS = 300
PILOT = (
    *(f"--train.steps={PILOT_STEPS}", f"--codistill.burn_in={PILOT_STEPS}", "--train.accumulate=2"),
    *("--train.validate_every=25", "--optimizer.decay=none", "--groups=2"),
)
CLICK_OPTIONS = ("--optimizer.lr=2e-3", "--optimizer.weight_decay=0", "--train.average=0", "--codistill.weight=1")
"""Options of the click model, whatever its configuration says."""
LINKS = {"unlimited": "", "1 Gbit/s": "0.125,100", "100 Mbit/s": "0.0125,100", "20 Mbit/s": "0.0025,100"}
"""Network between two nodes for `--link`, by its name in the study of slow links."""


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
    """Steps of the full training of one group with batch B."""
    seeds: Sequence[int]
    """Seeds of the full trainings."""
    options: tuple[str, ...] = ()
    """Options of the pilot and of the full trainings."""
    source: str = ""
    """File with the results of the study that has made the full trainings; without it, they are made here."""
    names: tuple[str, str, str] = ("one-{seed}", "double-{seed}", "two-{seed}")
    """Names of the full trainings of one group, of one with twice the batch, and of two groups; * stands for the
    settings that the study has found best."""
    link: str = ""
    """Network that a larger group spans, for `--link`."""
    rate: str = ""
    """Name of that network in the study, which has measured the times of steps there."""

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
    name: str, folder: str, batch: int, seeds: Sequence[int], source: str, names: tuple[str, str, str], *options: str
) -> Regime:
    """Return a regime of the language model whose full trainings are a study's."""
    return Regime(name, folder, "language", batch, 1500, seeds, (f"--data.path={TEXT}", *options), source, names)


def regimes() -> list[Regime]:
    """Return all regimes."""
    found = []
    for batch, seeds in ((8, 1), (32, 5), (128, 1)):
        for decay in ("none", "cosine"):
            name, folder = f"language, B = {batch}, {decay}", f"language-{batch}"
            names = (f"1x{batch}-{decay}-{{seed}}", f"1x{2 * batch}-{decay}-{{seed}}", f"2x{batch}-{decay}-{{seed}}")
            found.append(language(name, folder, batch, range(seeds), "batch-cpu", names))
    names = ("one-{seed}", "double-{seed}", "codistil-{seed}")
    found.append(language("language, B = 16, cosine", "language-16", 16, range(3), "baselines-cpu", names))
    names = ("one-averaged-{seed}", "one-twice_the_batch-averaged-{seed}", "two_codistilled-averaged-{seed}")
    average = "--train.average=0.99"
    found.append(
        language("language, B = 16, averaged", "language-16-averaged", 16, range(5), "beyond-cpu", names, average)
    )
    return [*found, *own(), *links(), tuned_clicks()]


def own() -> list[Regime]:
    """Return the regimes whose full trainings are this study's."""
    many = (f"--data.path={CLICKS}", "--data.partition=disjoint", *CLICK_OPTIONS)
    few = (study_little_data.clicks().options[0], "--data.partition=same", *CLICK_OPTIONS)
    rule = study_saturated.REGIME
    return [
        Regime("clicks, B = 64", "clicks-64", "clicks", 64, 900, range(1), many),
        Regime("clicks, 20,000 rows", "clicks-few", "clicks", 128, 1600, range(1), few),
        Regime("a rule without noise", "rule", rule.workload, rule.batch, 400, range(1), ("--optimizer.lr=3e-2",)),
    ]


def links() -> Iterator[Regime]:
    """Yield the regimes of two nodes with a link between them."""
    names = ("16x1-{seed}", "32x1-{seed}", "16x2-{seed}")
    weight = f"--codistill.weight={study_link.WEIGHT}"
    for rate, link in (
        ("unlimited", ""),
        ("1 Gbit/s", "0.125,100"),
        ("100 Mbit/s", "0.0125,100"),
        ("20 Mbit/s", "0.0025,100"),
    ):
        yield Regime(
            f"language, hidden 128, link {rate}",
            "language-link",
            "language",
            study_link.BATCH,
            study_link.STEPS,
            study_link.SEEDS,
            (*study_link.MODEL, weight),
            "link-cpu",
            names,
            link,
            rate,
        )


def tuned_clicks() -> Regime:
    """Return the regime of few rows, in which each use is tuned over the rate and the weight decay."""
    little = study_little_data.clicks()
    return Regime(
        name="clicks, 20,000 rows, tuned",
        folder="clicks-tuned",
        workload=little.workload,
        batch=little.batch,
        steps=little.cost // equal_cost.TRAINING,
        seeds=range(1, 6),
        options=(*little.options, "--optimizer.lr=4e-3", "--optimizer.weight_decay=1"),
        source="little_data-clicks-cpu",
        names=("clicks/one-lr*-{seed}", "clicks/double-lr*-{seed}", "clicks/codistilled0.3-lr*-{seed}"),
    )
