"""Churn on click data or a table: how much predictions change when a model is trained again with another seed.

Arms are one DNN, one trained at the cost of two that codistil, an ensemble of two, a DNN that learns from its own
model at an earlier step, and one of two that codistil at two weights, all with moving averages of the weights. All see
the same data, each in its own order. The churn is the mean absolute difference of the predictions of two trainings
(Anil et al. 2018, Section 3). All arms have five independent pairs or more. The learning rate and the weight decay of
each arm are the best, by log loss, of the same settings, tried with another seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, product, zip_longest
from math import hypot
from pathlib import Path
from statistics import fmean

import torch
from matplotlib.figure import Figure
from torch import Tensor

from equal_cost import Setting
from hpcdistill.evaluation.predictions import open_validation_data, validation_outputs
from hpcdistill.models.saved import SavedModel
from hpcdistill.storage.run_dir import named_checkpoints
from hpcdistill.tasks.objective import Binary
from study import CLICKS, RUNS, Run, Study, format_mean, interval, markdown, prepare, prepare_clicks

TUNING_SEED = 100
VARIED_SEEDS = (0, 1)
TOGETHER = 15
"""Trainings that one job makes, one after another."""
BURN_IN = 0.5
"""Fraction of the steps."""
OBJECTIVE = Binary()


@dataclass(frozen=True)
class Kind:
    """Training of several models at the same time."""

    name: str
    options: tuple[str, ...]
    seeds: Sequence[int]
    groups: int = 2
    length: float = 1.0
    """Steps, as a multiple of those of the study's data."""


PLAIN = Kind("plain", ("--codistill.weight=0",), range(10))
CODISTILLED = Kind("codistilled", ("--codistill.weight=1.5",), range(10))
STRONGER = Kind("codistilled-2", ("--codistill.weight=2",), range(10))
SELF = Kind("self", ("--codistill.weight=1.5", "--codistill.teachers=self"), range(5))
LONGER = Kind("longer", PLAIN.options, range(5), length=2 * (3 + 1 - BURN_IN) / 3)
"""Plain trainings each of whose models costs as much as two that codistil: a step costs three forward passes, and a
teacher one more after the burn-in."""
KINDS = (PLAIN, CODISTILLED, STRONGER, SELF, LONGER)
VARIED = {
    "weight 1": "--codistill.weight=1",
    "weight 4": "--codistill.weight=4",
    "temperature 2": "--codistill.temperature=2",
    "no moving average": "--train.average=0",
    "constant rate": "--optimizer.decay=none",
    "no burn-in": "--codistill.burn_in=0",
    "burn-in of 150 steps": "--codistill.burn_in=150",
    "ramp of 300 steps": "--codistill.ramp=300",
    "interval 10": "--codistill.exchange_interval=10",
    "disjoint data": "--data.partition=disjoint",
}
"""Options that are changed one at a time, for click data."""
VARIATIONS = (
    *(Kind(name, (*CODISTILLED.options, option), VARIED_SEEDS) for name, option in VARIED.items()),
    *(Kind(f"{groups} groups", CODISTILLED.options, VARIED_SEEDS, groups) for groups in (3, 4)),
)


@dataclass(frozen=True)
class Arm:
    """Way to make a model, which is made twice for each pair."""

    kind: Kind
    is_ensemble: bool = False
    """True if the mean of the predictions of a training's two models is judged."""
    is_independent: bool = False
    """True if the two models of a training are a pair; else two trainings make one."""


BASE = "one DNN"
ARMS = {
    BASE: Arm(PLAIN, is_independent=True),
    "one DNN at the cost of two that codistil": Arm(LONGER, is_independent=True),
    "ensemble of two": Arm(PLAIN, is_ensemble=True),
    "one that learns from itself, weight 1.5": Arm(SELF, is_independent=True),
    "one of two that codistil, weight 1.5": Arm(CODISTILLED),
    "one of two that codistil, weight 2": Arm(STRONGER),
}
TITLES = ("arm", "models to serve", "rate, weight decay", "log loss", "less one DNN's", "churn", "churn / one DNN's")


@dataclass(frozen=True)
class Data:
    """Data of a study, and the length of its trainings."""

    path: Path
    part: str
    """Name of its results."""
    steps: int
    options: tuple[str, ...]
    """Options of all trainings."""
    settings: tuple[Setting, ...]
    """Learning rates and weight decays that are tried."""

    def training(self, kind: Kind, setting: Setting, seed: int) -> Run:
        """Return a training."""
        steps = round(self.steps * kind.length)
        options = (
            *self.options,
            *(f"--train.steps={steps}", f"--train.validate_every={steps // 4}", f"--checkpoint.interval={steps}"),
            *(f"--codistill.burn_in={round(self.steps * BURN_IN)}", "--train.average=0.98"),
            *(f"--data.path={self.path}", "--data.partition=same", f"--seed={seed}", f"--groups={kind.groups}"),
            *(f"--optimizer.lr={setting.rate:g}", f"--optimizer.weight_decay={setting.decay:g}"),
            *kind.options,
        )
        kind_name = kind.name.replace(" ", "-")
        name = f"{self.part or 'clicks'}/{kind_name}-lr{setting.rate:g}-wd{setting.decay:g}-{seed}"
        return Run(name, "clicks", options, kind.groups)


@dataclass
class Found:
    """Results of an arm."""

    setting: Setting
    models: int
    """Models to serve."""
    log_loss: list[float]
    """Log loss by seed; the mean over the models of a training."""
    churn: list[float]
    """Churn by pair; of two trainings with two models each, the mean over the four combinations."""


def settings(*pairs: tuple[float, float]) -> tuple[Setting, ...]:
    """Return settings from pairs of a learning rate and a weight decay."""
    return tuple(Setting(*pair) for pair in pairs)


def open_data(options: argparse.Namespace) -> Data:
    """Prepare the synthetic clicks, or the table that is named."""
    if options.table is None:
        prepare_clicks()
        return Data(CLICKS, "", 1000, (), settings((8e-3, 0.5), (8e-3, 1.0), (16e-3, 0.3)))
    file, label = options.table
    path = RUNS / "data" / f"{Path(file).stem}.h5"
    prepare(path, "table", "--input", file, "--label", label)
    widths = ("--model.widths=64,32",)
    return Data(path, path.stem, 720, widths, settings((2e-3, 0.1), (4e-3, 0.1), (4e-3, 0.3)))


def predict(study: Study, data: Data, runs: Sequence[Run]) -> tuple[Tensor, Tensor]:
    """Return the logits [runs, groups, rows] of the trainings' best models for the validation rows, and the labels."""
    paths = [path for run in runs for path in named_checkpoints(str(study.folder(run.name)), "best").values()]
    saved = [SavedModel.load(path) for path in paths]
    task = open_validation_data(saved, data.path)
    with task.store:
        batches = [(torch.stack(outputs), target) for outputs, target in validation_outputs(task, saved)]
    logits, labels = zip(*batches, strict=True)
    return torch.cat(logits, 1).unflatten(0, (len(runs), -1)), torch.cat(labels)


def measure(arm: Arm, setting: Setting, logits: Tensor, labels: Tensor) -> Found:
    """Return the loss of each training's models, and the churn of each pair.

    Args:
        arm: the arm.
        setting: its setting.
        logits: of the trainings' models, float32 [trainings, groups, rows].
        labels: float32 [rows].
    """
    models = [[OBJECTIVE.ensemble([*run])] if arm.is_ensemble else [*run] for run in logits]
    if arm.is_independent:
        pairs = [[(one, other)] for one, other in models]
    else:
        pairs = [[*product(one, other)] for one, other in zip(models[::2], models[1::2], strict=True)]
    losses = [[OBJECTIVE.cross_entropy(model, labels).double().mean().item() for model in run] for run in models]
    churns = [[OBJECTIVE.distance(*two).double().mean().item() for two in pair] for pair in pairs]
    return Found(setting, 2 if arm.is_ensemble else 1, [*map(fmean, losses)], [*map(fmean, churns)])


def tune(study: Study, data: Data) -> dict[str, dict[Setting, float]]:
    """Return the log loss of each kind of training at each setting, the mean of its two models."""
    study.train((data.training(kind, each, TUNING_SEED) for each in data.settings for kind in KINDS), TOGETHER)
    tried: dict[str, dict[Setting, float]] = {}
    for kind in KINDS:
        found = {each: study.metrics(data.training(kind, each, TUNING_SEED).name) for each in data.settings}
        tried[kind.name] = {each: fmean(group.best for group in groups) for each, groups in found.items()}
    return tried


def draw(found: dict[str, Found]) -> Figure:
    """Draw the churn of each pair of each arm, and the mean, at the arm's log loss."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for number, (name, each) in enumerate(found.items()):
        loss, color = fmean(each.log_loss), f"C{number}"
        axes.plot([loss] * len(each.churn), each.churn, ".", color=color, alpha=0.4)
        axes.plot(loss, fmean(each.churn), "o", color=color, label=name)
    axes.set(xlabel="log loss", ylabel="mean absolute difference of two trainings' predictions", ylim=(0, None))
    axes.legend(frameon=False, fontsize="small")
    return figure


def table(found: dict[str, Found]) -> str:
    """Return the results in Markdown; differences from one DNN are paired by seeds."""
    base, rows = found[BASE], []
    for name, each in found.items():
        less = [loss - other for loss, other in zip(each.log_loss, base.log_loss, strict=False)]
        rows.append(
            (
                *(name, each.models, each.setting, format_mean(each.log_loss, 4)),
                "-" if each is base else format_mean(less, 4),
                *(format_mean(each.churn, 4), "1" if each is base else _ratio(each.churn, base.churn)),
            )
        )
    return markdown(TITLES, rows)


def _ratio(values: Sequence[float], base: Sequence[float]) -> str:
    """Format the ratio of two means with its 95 % interval, to which both contribute."""
    (one, one_half), (other, other_half) = interval(values), interval(base)
    ratio = one / other
    return f"{ratio:.2f} ± {ratio * hypot(one_half / one, other_half / other):.2f}"


def vary(study: Study, data: Data, best: dict[Kind, Setting]) -> None:
    """Train variations of the codistilled arm at its setting, a pair of each, and write the results."""
    settings_of = {kind: best.get(kind, best[CODISTILLED]) for kind in (PLAIN, CODISTILLED, *VARIATIONS)}
    runs = {kind: [data.training(kind, each, seed) for seed in VARIED_SEEDS] for kind, each in settings_of.items()}
    done = study.train(chain(*runs.values()), TOGETHER)
    found = {
        kind.name: measure(Arm(kind), each, *predict(study, data, runs[kind])) for kind, each in settings_of.items()
    }
    base, rows = found[PLAIN.name], []
    for name, each in found.items():
        less = fmean(each.log_loss) - fmean(base.log_loss)
        rows.append((name, f"{less:+.4f}", f"{each.churn[0] / base.churn[0]:.2f}"))
    facts = {name: {"log_loss": each.log_loss, "churn": each.churn} for name, each in found.items()}
    titles = ("codistilled, with", "log loss, less one DNN's", "churn / one DNN's")
    study.write_results(done, markdown(titles, rows), "variations", options=data.options, found=facts)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this study."""
    parser.add_argument(
        "--table",
        nargs=2,
        metavar=("FILE", "COLUMN"),
        help="CSV or Parquet table and its column to predict, which has two values, instead of synthetic clicks",
    )
    parser.add_argument(
        "--variations", action="store_true", help="instead, change one option of the codistilled arm at a time"
    )


def main() -> None:
    """Train all arms and write the results."""
    study = Study("churn", __doc__, add_options)
    data = open_data(study.options)
    tried = tune(study, data)
    best = {kind: min(tried[kind.name], key=lambda each: tried[kind.name][each]) for kind in KINDS}
    if study.options.variations:
        vary(study, data, best)
        return
    runs = {kind: [data.training(kind, best[kind], seed) for seed in kind.seeds] for kind in KINDS}
    by_seed = zip_longest(*runs.values())
    done = study.train((run for of_seed in by_seed for run in of_seed if run is not None), TOGETHER)
    predicted = {kind: predict(study, data, runs[kind]) for kind in KINDS}
    found = {name: measure(arm, best[arm.kind], *predicted[arm.kind]) for name, arm in ARMS.items()}
    study.write_figure(draw(found), data.part)
    facts = {
        "options": data.options,
        "tried": {name: {str(each): loss for each, loss in losses.items()} for name, losses in tried.items()},
        "found": {name: vars(each) | {"setting": str(each.setting)} for name, each in found.items()},
    }
    study.write_results(done, table(found), data.part, **facts)


if __name__ == "__main__":
    main()
