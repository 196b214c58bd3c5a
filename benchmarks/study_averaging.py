"""Averaging weights between groups, alone and with distillation, against other ways to spend the same cost.

The groups of an averaging arm begin with the same weights, and at each interval move towards the mean of their stale
snapshots, which travel through the windows of the public session (`averaging_loop.py`). All arms cost the same, are
tuned over equally many settings, and are judged by the moving average of their weights.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from pydoc_data import topics
from statistics import fmean
from typing import Any

from averaging_loop import AVERAGE, LENGTH, Job
from equal_cost import Arm, affordable
from study import ROOT, Study, format_mean, markdown

SEEDS = range(1, 6)
BATCH = 16
COST = 4500
"""Cost of each training with all of its groups, in forward passes of `BATCH` sequences."""
BURN_IN = 0.25
INTERVAL = 10
RATES = (3e-3, 1e-2)
FACTS = {
    **{"cost": COST, "batch": BATCH, "length": LENGTH, "average": AVERAGE},
    **{"interval": INTERVAL, "burn_in": BURN_IN},
}

ARMS = {
    "one": Arm("one"),
    "one, twice the batch": Arm("double", batch=2),
    "one, self-distilled": Arm("self", teachers=1),
    "two codistilled": Arm("codistilled", groups=2, teachers=1),
    "two averaged": Arm("averaged", groups=2),
    "two averaged and codistilled": Arm("both", groups=2, teachers=1),
}

CHOICES: dict[str, tuple[dict[str, float], dict[str, float]]] = {
    "one": ({"decay": 0.1}, {"decay": 1.0}),
    "one, twice the batch": ({"decay": 0.1}, {"decay": 1.0}),
    "one, self-distilled": ({"weight": 0.1}, {"weight": 0.3}),
    "two codistilled": ({"weight": 0.1}, {"weight": 0.3}),
    "two averaged": ({"strength": 0.5}, {"strength": 1.0}),
    "two averaged and codistilled": ({"weight": 0.1, "strength": 0.5}, {"weight": 0.1, "strength": 1.0}),
}
"""What is tried at each rate; else the weight decay is 0.1, and there is no distillation and no averaging."""


@dataclass(frozen=True)
class Setting:
    """Learning rate, and one of the `CHOICES`."""

    rate: float
    choice: int

    def describe(self, arm: str) -> str:
        """Return the values by name."""
        return ", ".join(
            f"{name} {value:g}" for name, value in ({"rate": self.rate} | CHOICES[arm][self.choice]).items()
        )


SETTINGS = [Setting(rate, choice) for rate in RATES for choice in (0, 1)]


def training(study: Study, arm: str, setting: Setting, seed: int) -> Job:
    """Return a training of an arm whose cost is `COST`."""
    its, options = ARMS[arm], study.options
    steps, burn_in = affordable(its, COST, BURN_IN)
    values: dict[str, Any] = {"decay": 0.1, "weight": 0.0, "strength": 0.0} | CHOICES[arm][setting.choice]
    return Job(
        name=str(study.folder(f"{its.name}-{setting.rate:g}-{setting.choice}-{seed}")),
        text=str(options.text.resolve()),
        nbytes=options.nbytes,
        groups=its.groups,
        batch=its.batch * BATCH,
        steps=steps,
        burn_in=burn_in,
        interval=INTERVAL,
        rate=setting.rate,
        seed=seed,
        **values,
    )


def train(study: Study, jobs: Iterable[Job]) -> None:
    """Train the jobs that have not been trained before, in one start of two ranks."""
    if missing := [asdict(job) for job in jobs if not Path(f"{job.name}.json").exists()]:
        path = study.folder("jobs.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(missing))
        loop = ROOT / "benchmarks" / "averaging_loop.py"
        subprocess.run(["mpirun", "-np", "2", sys.executable, loop, path], check=True)


def result(job: Job) -> dict[str, Any]:
    """Return what a training has written."""
    content: dict[str, Any] = json.loads(Path(f"{job.name}.json").read_text())
    return content


def loss(job: Job, kind: str = "losses") -> float:
    """Return the lowest validation loss, in nats per byte: the mean over the groups."""
    return fmean(min(group[kind]) for group in result(job)["groups"])


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the study's own options."""
    topics_file = Path(topics.__file__)
    parser.add_argument("--text", type=Path, default=topics_file, help="text; by default the help topics of Python")
    parser.add_argument("--nbytes", type=int, default=111_000, help="bytes of the text that are read")


def tune(study: Study) -> dict[str, Setting]:
    """Train each arm with all settings, write the results, and return the best setting of each."""
    jobs = {arm: {setting: training(study, arm, setting, 0) for setting in SETTINGS} for arm in ARMS}
    train(study, (job for its in jobs.values() for job in its.values()))
    rows = [
        (arm, setting.describe(arm), f"{loss(job):.3f}") for arm, its in jobs.items() for setting, job in its.items()
    ]
    titles = ("arm", "setting", "nats per byte")
    study.write_results({}, markdown(titles, rows), "tuning", settings=FACTS, arms=as_json(jobs))
    return {arm: min(its, key=lambda setting: loss(its[setting])) for arm, its in jobs.items()}


def as_json(jobs: Mapping[str, Mapping[Any, Job]]) -> dict[str, Any]:
    """Return the trainings of each arm and their results as JSON values, without paths."""
    paths = {"name", "text"}
    return {
        arm: [
            {"training": {key: value for key, value in asdict(job).items() if key not in paths}} | result(job)
            for job in its.values()
        ]
        for arm, its in jobs.items()
    }


def main() -> None:
    """Tune all arms, train them with other seeds, and write the results."""
    study = Study("averaging", __doc__, add_options)
    best = tune(study)
    jobs = {arm: {seed: training(study, arm, best[arm], seed) for seed in SEEDS} for arm in ARMS}
    train(study, (jobs[arm][seed] for seed in SEEDS for arm in ARMS))
    losses = {arm: [loss(job) for job in its.values()] for arm, its in jobs.items()}
    base = min((arm for arm in ARMS if "averaged" not in arm), key=lambda arm: fmean(losses[arm]))
    for arm in ARMS:
        if "averaged" in arm:
            losses[f"{arm}, merged"] = [loss(job, "merged") for job in jobs[arm].values()]
    rows = []
    for name, values in losses.items():
        arm = name.removesuffix(", merged")
        less = [mine - other for mine, other in zip(values, losses[base], strict=True)]
        steps, _ = affordable(ARMS[arm], COST, BURN_IN)
        difference = "-" if name == base else format_mean(less)
        rows.append((name, best[arm].describe(arm), steps, format_mean(values), difference))
    titles = ("arm", "best setting", "steps", "nats per byte", f"less that of {base}")
    study.write_results({}, markdown(titles, rows), settings=FACTS, arms=as_json(jobs))


if __name__ == "__main__":
    main()
