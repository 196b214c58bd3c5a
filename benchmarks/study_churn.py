"""Churn on click data or a table: how much predictions change when a model is trained again with another seed.

Arms are one DNN, an ensemble of two, a DNN that learns from its own model at an earlier step, and one of two that
codistil, all with moving averages of the weights. All see the same data, each in its own order. The churn is the mean
absolute difference of the predictions of two trainings (Anil et al. 2018, Section 3). All arms have five independent
pairs or more. The learning rate and the weight decay of each arm are the best, by log loss, of the same settings, tried
with another seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product, zip_longest
from pathlib import Path
from statistics import fmean

import torch
from matplotlib.figure import Figure
from torch import Tensor

from hpcdistill.evaluation.predictions import open_validation_data, validation_outputs
from hpcdistill.models.saved import SavedModel
from hpcdistill.storage.run_dir import named_checkpoints
from hpcdistill.tasks.objective import Binary
from study import CLICKS, RUNS, Run, Study, format_mean, markdown, prepare, prepare_clicks
from study_tuned import Setting

TUNING_SEED = 100
OBJECTIVE = Binary()


@dataclass(frozen=True)
class Kind:
    """Training of two models at the same time."""

    name: str
    options: tuple[str, ...]
    seeds: range


PLAIN = Kind("plain", ("--codistill.weight=0",), range(10))
CODISTILLED = Kind("codistilled", ("--codistill.weight=1.5",), range(10))
SELF = Kind("self", ("--codistill.weight=1.5", "--codistill.teachers=self"), range(5))
KINDS = (PLAIN, CODISTILLED, SELF)


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
    "ensemble of two": Arm(PLAIN, is_ensemble=True),
    "one that learns from itself": Arm(SELF, is_independent=True),
    "one of two that codistil": Arm(CODISTILLED),
}
TITLES = ("arm", "models to serve", "rate, weight decay", "log loss", "less one DNN's", "churn", "churn / one DNN's")


@dataclass(frozen=True)
class Data:
    """Data of a study, and the length of its trainings."""

    path: Path
    part: str
    """Name of its results."""
    options: tuple[str, ...]
    """Options of all trainings."""
    settings: tuple[Setting, ...]
    """Learning rates and weight decays that are tried."""

    def training(self, kind: Kind, setting: Setting, seed: int) -> Run:
        """Return the training of two models."""
        options = (
            *self.options,
            *(f"--data.path={self.path}", "--data.partition=same", f"--seed={seed}"),
            *(f"--optimizer.lr={setting.rate:g}", f"--optimizer.weight_decay={setting.decay:g}"),
            *kind.options,
        )
        name = f"{self.part or 'clicks'}/{kind.name}-lr{setting.rate:g}-wd{setting.decay:g}-{seed}"
        return Run(name, "clicks", options, ranks=2)


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


def length(steps: int) -> tuple[str, ...]:
    """Return the options of a training of `steps` steps."""
    return (
        *(f"--train.steps={steps}", f"--train.validate_every={steps // 4}", f"--checkpoint.interval={steps}"),
        f"--codistill.burn_in={steps * 3 // 20}",
        "--train.average=0.98",
    )


def settings(*pairs: tuple[float, float]) -> tuple[Setting, ...]:
    """Return settings from pairs of a learning rate and a weight decay."""
    return tuple(Setting(*pair) for pair in pairs)


def open_data(options: argparse.Namespace) -> Data:
    """Prepare the synthetic clicks, or the table that is named."""
    if options.table is None:
        prepare_clicks()
        return Data(CLICKS, "", length(1000), settings((8e-3, 0.5), (16e-3, 0.3)))
    path = RUNS / "data" / f"{options.table.stem}.h5"
    prepare(path, "table", "--input", str(options.table), "--label", options.label)
    sizes = ("--model.widths=64,32", *length(720))
    return Data(path, options.table.stem, sizes, settings((2e-3, 0.1), (4e-3, 0.3)))


def predict(study: Study, data: Data, runs: Sequence[Run]) -> tuple[Tensor, Tensor]:
    """Return the logits [runs, 2, rows] of the trainings' best models for the validation rows, and the labels."""
    paths = [path for run in runs for path in named_checkpoints(str(study.folder(run.name)), "best").values()]
    saved = [SavedModel.load(path) for path in paths]
    task = open_validation_data(saved, data.path)
    with task.store:
        batches = [(torch.stack(outputs), target) for outputs, target in validation_outputs(task, saved)]
    logits, labels = zip(*batches, strict=True)
    return torch.cat(logits, 1).unflatten(0, (len(runs), 2)), torch.cat(labels)


def measure(arm: Arm, setting: Setting, logits: Tensor, labels: Tensor) -> Found:
    """Return the loss of each training's models, and the churn of each pair.

    Args:
        arm: the arm.
        setting: its setting.
        logits: of the trainings' models, float32 [trainings, 2, rows].
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
    study.train(data.training(kind, each, TUNING_SEED) for each in data.settings for kind in KINDS)
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
        ratio = [churn / fmean(base.churn) for churn in each.churn]
        rows.append(
            (
                *(name, each.models, each.setting, format_mean(each.log_loss, 4)),
                "-" if each is base else format_mean(less, 4),
                *(format_mean(each.churn, 4), format_mean(ratio, 2)),
            )
        )
    return markdown(TITLES, rows)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a table."""
    parser.add_argument("--table", type=Path, metavar="FILE", help="CSV or Parquet table, instead of synthetic clicks")
    parser.add_argument("--label", metavar="COLUMN", help="column of the table to predict; it has two values")


def main() -> None:
    """Train all arms and write the results."""
    study = Study("churn", __doc__, add_options)
    data = open_data(study.options)
    tried = tune(study, data)
    best = {kind: min(tried[kind.name], key=lambda each: tried[kind.name][each]) for kind in KINDS}
    runs = {kind: [data.training(kind, best[kind], seed) for seed in kind.seeds] for kind in KINDS}
    by_seed = zip_longest(*runs.values())
    done = study.train(run for of_seed in by_seed for run in of_seed if run is not None)
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
