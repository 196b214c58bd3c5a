"""Scores of trained models, and of ensembles of them, on validation data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpcdistill.data.batches import IGNORED
from hpcdistill.evaluation.predictions import open_validation_data, validation_outputs
from hpcdistill.models.saved import SavedModel
from hpcdistill.storage.run_dir import named_checkpoints


@dataclass(frozen=True)
class Evaluation:
    """Scores of models and their ensembles on the same data."""

    data: str
    """Path of the store, or name of the function, that the data is from."""
    unit: str
    """Thing that each prediction is for: "token", "row" or "image"."""
    predictions: int
    """Number of predictions of each model."""
    scores: dict[str, dict[str, float]]
    """Scores by the name of the model or ensemble, then by their own; NaN if undefined. Losses are in nats."""


def evaluate(names: Sequence[str], data: Path | None, which: str = "best", trust: bool = False) -> Evaluation:
    """Score each model, the ensemble of each run's groups, and the ensemble of all models.

    The data are the batches on which training validates without `train.validation_items`. For synthetic clicks,
    `above_bayes` is relative to the lowest possible loss over the whole validation part, so it has the sampling error
    of these batches.

    Args:
        names: names of models; see `named_checkpoints`.
        data: path of the store; None for the data that the models were trained on.
        which: checkpoint of each group of a run: "best" or "last".
        trust: let checkpoints of other users name the code of their models.

    Raises:
        UserError: models or data do not exist, or do not fit each other.
    """
    named = {name: named_checkpoints(name, which) for name in names}
    checkpoints = {model: path for found in named.values() for model, path in found.items()}
    members_of = {model: [model] for model in checkpoints}
    members_of |= _ensembles({name: [*found] for name, found in named.items()})
    saved = [SavedModel.load(path, trust) for path in checkpoints.values()]
    task = open_validation_data(saved, data)
    with task.store:
        scores, predictions = {name: task.scores() for name in members_of}, 0
        for outputs, target in validation_outputs(task, saved):
            by_model = dict(zip(checkpoints, outputs, strict=True))
            predictions += int((target != IGNORED).sum())
            for name, members in members_of.items():
                scores[name].add(task.objective.ensemble([by_model[member] for member in members]), target)
    results = {name: scored.result() for name, scored in scores.items()}
    return Evaluation(str(data or saved[0].config.data.source), task.unit, predictions, results)


def _ensembles(named: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return the members of each ensemble: of each run's models, and of all models if they are not one run's."""
    runs = {f"mean of {name}": models for name, models in named.items() if len(models) > 1}
    all_models = list(dict.fromkeys(model for models in named.values() for model in models))
    return runs | ({"mean of all": all_models} if len(all_models) > 1 and all_models not in runs.values() else {})
