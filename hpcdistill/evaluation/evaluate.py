"""How good trained models, and ensembles of them, are on validation data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpcdistill.evaluation.predictions import validation_outputs
from hpcdistill.storage.run_dir import named_checkpoints
from hpcdistill.tasks.registry import open_task


@dataclass(frozen=True)
class Evaluation:
    """Of models and their ensembles on the same data."""

    data: str
    unit: str
    """Of what there is one prediction each."""
    predictions: int
    """How many, by each model."""
    scores: dict[str, dict[str, float]]
    """By name of the model or ensemble, then by name of the score; NaN for what has no value. Losses are in nats."""


def evaluate(names: Sequence[str], data: Path, which: str = "best", trust: bool = False) -> Evaluation:
    """Score each model, the ensemble of each run's groups, and that of all models.

    On the sample of the validation part that training validates on without `train.validation_items`. For clicks,
    `above_bayes` compares with the best possible loss over all of that part, and so errs by as much as the sample does.

    Args:
        names: of models; see `named_checkpoints`.
        data: the store.
        which: of a run's checkpoints, the "best" or the "last" one of each group.
        trust: let checkpoints of other users name the code of their models.

    Raises:
        UserError: no such models or data, or they do not fit each other.
    """
    named = {name: named_checkpoints(name, which) for name in names}
    checkpoints = {model: path for found in named.values() for model, path in found.items()}
    judged = {model: [model] for model in checkpoints} | _ensembles({name: [*found] for name, found in named.items()})
    task = open_task(data)
    with task.store:
        scores, predictions = {name: task.scores() for name in judged}, 0
        for outputs, target in validation_outputs(task, [*checkpoints.values()], trust):
            by_model = dict(zip(checkpoints, outputs, strict=True))
            predictions += target.numel()
            for name, members in judged.items():
                scores[name].add(task.objective.ensemble([by_model[member] for member in members]), target)
    return Evaluation(str(data), task.unit, predictions, {name: scored.result() for name, scored in scores.items()})


def _ensembles(named: dict[str, list[str]]) -> dict[str, list[str]]:
    """The members of each ensemble, of two or more models: of each run, and of all unless they are one run's."""
    runs = {f"mean of {name}": models for name, models in named.items() if len(models) > 1}
    everyone = list(dict.fromkeys(model for models in named.values() for model in models))
    return runs | ({"mean of all": everyone} if len(everyone) > 1 and everyone not in runs.values() else {})
