"""Parts of studies whose arms have equal costs and are tuned alike: costs, tuning, results with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from hpcdistill.evaluation.evaluate import evaluate
from study import ROOT, Run, Runs, Study, format_mean, markdown, steps_to

TRAINING = 3
"""Cost of a training step, in forward passes of its batch: the backward pass costs two of them."""
VALIDATIONS = 12
"""Validations of a training, evenly spread."""
EXCHANGES = 100
"""Exchanges of a training, evenly spread."""

TOGETHER = 10
"""Trainings of a job."""


@dataclass(frozen=True)
class Arm:
    """Way to spend a cost: number of models, batch size, and teachers."""

    name: str
    """Name of its trainings. Arms that are judged differently may share trainings."""
    groups: int = 1
    """Number of models trained together."""
    batch: int = 1
    """Batch size of each group, in units of the regime's."""
    teachers: int = 0
    """Forward passes of teachers in each step after the burn-in."""
    options: tuple[str, ...] = ()
    """Options of `hpcdistill train`."""
    is_ensemble: bool = False
    """True if the mean of all groups' predictions is judged, instead of each model by itself."""

    @property
    def ranks(self) -> int:
        """Number of processes: one for each group."""
        return self.groups


@dataclass(frozen=True)
class Regime:
    """Data, model, and budget of a comparison.

    Each arm is trained at each rate with each weight decay.
    """

    name: str
    workload: str
    """Name of its configuration in configs/."""
    options: tuple[str, ...]
    """Options of all trainings, the data's path among them."""
    batch: int
    """Examples in a batch, B."""
    cost: int
    """Cost of each training with all of its groups, in forward passes of B examples."""
    rates: tuple[float, ...]
    """Learning rates."""
    decays: tuple[float, ...]
    """Weight decays."""
    burn_in: float = 0.25
    """Burn-in, as a fraction of the steps."""

    @property
    def settings(self) -> list[Setting]:
        """Settings tried for each arm."""
        return [Setting(*pair) for pair in product(self.rates, self.decays)]


@dataclass(frozen=True)
class Setting:
    """Learning rate and weight decay."""

    rate: float
    decay: float

    def __str__(self) -> str:
        return f"{self.rate:g}, {self.decay:g}"


@dataclass
class Found:
    """Results of an arm; lists have a value for each seed."""

    setting: Setting
    """Best of the settings."""
    tried: dict[str, float]
    """Loss by setting, from the seed of the tuning."""
    steps: int
    """Steps of each training."""
    losses: list[float] = field(default_factory=list)
    """Lowest validation loss, in nats; the mean over groups, unless their ensemble is judged."""
    best_steps: list[float] = field(default_factory=list)
    """Step of that loss; the mean over groups. None of an ensemble, which is judged once."""
    costs: list[float] = field(default_factory=list)
    """Cost to the lowest loss of the first arm, as a fraction of the budget; 1 if it was not reached. None of an
    ensemble."""


def cost_of(arm: Arm, steps: float, burn_in: float) -> float:
    """Return the cost of an arm's first `steps` steps, in forward passes of the regime's batch.

    Args:
        arm: its groups are counted together.
        steps: steps of each group.
        burn_in: those of them that may come before distillation begins.
    """
    return arm.groups * arm.batch * (TRAINING * steps + arm.teachers * max(0.0, steps - burn_in))


def affordable(arm: Arm, cost: float, burn_in: float) -> tuple[int, int]:
    """Return the largest number of steps that costs at most `cost`, and the steps of its burn-in.

    Args:
        arm: the arm.
        cost: in forward passes of the regime's batch.
        burn_in: fraction of the steps.

    Raises:
        ValueError: not even one step is affordable.
    """
    steps = math.floor(cost / cost_of(arm, 1.0, burn_in))
    while steps and cost_of(arm, steps, math.floor(burn_in * steps)) > cost:
        steps -= 1
    if not steps:
        raise ValueError(f"a cost of {cost:g} forward passes is less than one step of {arm.name!r}")
    return steps, math.floor(burn_in * steps)


def training(regime: Regime, arm: Arm, setting: Setting, seed: int) -> Run:
    """Return the training of an arm whose cost is the regime's; the rate decays to its end."""
    steps, burn_in = affordable(arm, regime.cost, regime.burn_in)
    options = (
        *regime.options,
        *(f"--groups={arm.groups}", f"--data.batch_size={arm.batch * regime.batch}", f"--seed={seed}"),
        *(f"--optimizer.lr={setting.rate:g}", f"--optimizer.weight_decay={setting.decay:g}"),
        *(f"--train.steps={steps}", f"--train.validate_every={max(1, steps // VALIDATIONS)}"),
        *(f"--codistill.burn_in={burn_in}", f"--codistill.exchange_interval={max(1, steps // EXCHANGES)}"),
        *(f"--checkpoint.interval={steps}", *arm.options),
    )
    name = f"{regime.name}/{arm.name}-lr{setting.rate:g}-wd{setting.decay:g}-{seed}"
    return Run(name, regime.workload, options, arm.ranks)


def compare(
    study: Study, regime: Regime, arms: Mapping[str, Arm], seeds: Sequence[int], tuning_seed: int = 0
) -> tuple[dict[str, Found], Runs]:
    """Tune each arm and train it with other seeds; the first arm is the reference for costs.

    Args:
        study: trains, and keeps what was trained.
        regime: the regime.
        arms: by their names in tables.
        seeds: seeds of the results.
        tuning_seed: seed of the trainings that choose each arm's setting, by their lowest validation loss.

    Returns:
        The results by the arm's name, and the metrics of all trainings.
    """
    tunings = (training(regime, arm, each, tuning_seed) for arm in arms.values() for each in regime.settings)
    runs = study.train(tunings, TOGETHER)
    found = {}
    for name, arm in arms.items():
        tried = {each: _loss(study, arm, training(regime, arm, each, tuning_seed)) for each in regime.settings}
        best = min(tried, key=lambda each: (math.isnan(tried[each]), tried[each]))
        steps, _ = affordable(arm, regime.cost, regime.burn_in)
        found[name] = Found(best, {str(each): loss for each, loss in tried.items()}, steps)
    results = (training(regime, arm, found[name].setting, seed) for name, arm in arms.items() for seed in seeds)
    runs |= study.train(results, TOGETHER)
    for name, arm in arms.items():
        for number, seed in enumerate(seeds):
            run = training(regime, arm, found[name].setting, seed)
            found[name].losses.append(_loss(study, arm, run))
            if arm.is_ensemble:  # its validation losses are those of its members
                continue
            groups = runs[run.name]
            found[name].best_steps.append(fmean(steps_to(group, group.best) for group in groups))
            target = next(iter(found.values())).losses[number]
            steps, burn_in = affordable(arm, regime.cost, regime.burn_in)
            cost = fmean(cost_of(arm, steps_to(group, target), burn_in) for group in groups)
            found[name].costs.append(cost / cost_of(arm, steps, burn_in))
    return found, runs


def _loss(study: Study, arm: Arm, run: Run) -> float:
    """Return the lowest validation loss of a training, as the arm is judged; NaN if none was finite."""
    if not arm.is_ensemble:
        return fmean(group.best for group in study.metrics(run.name))
    folder = study.folder(run.name)
    paths = [Path(each.removeprefix("--data.path=")) for each in run.options if each.startswith("--data.path=")]
    scores = evaluate([str(folder)], paths[-1] if paths else None).scores[f"mean of {folder}"]  # runs may have moved
    return scores["log_loss" if "log_loss" in scores else "loss"]


def table(found: Mapping[str, Found], base: str) -> str:
    """Return the results in Markdown, with the differences from the arm `base`, paired by seed."""
    titles = ("arm", "rate, weight decay", "steps", "validation loss", f"less that of {base}", "best step", "cost")
    rows = []
    for name, each in found.items():
        less = [loss - other for loss, other in zip(each.losses, found[base].losses, strict=True)]
        cells = (
            "-" if name == base else format_mean(less, 4),
            format_mean(each.best_steps, 0) if each.best_steps else "-",
            format_mean(each.costs, 2) if each.costs else "-",
        )
        rows.append((name, each.setting, each.steps, format_mean(each.losses, 4), *cells))
    return markdown(titles, rows)


def best_of(found: Mapping[str, Found], names: Sequence[str]) -> str:
    """Return the arm with the lowest mean loss among `names`."""
    return min(names, key=lambda name: fmean(found[name].losses))


def as_json(regime: Regime, found: Mapping[str, Found]) -> dict[str, Any]:
    """Return a regime and its results as JSON values."""
    options = [option.replace(f"{ROOT}/", "") for option in regime.options]
    facts = {"options": options, "batch": regime.batch, "cost": regime.cost, "burn_in": regime.burn_in}
    arms = {name: vars(each) | {"setting": vars(each.setting)} for name, each in found.items()}
    return {"regime": facts, "settings": len(regime.settings), "arms": arms}
