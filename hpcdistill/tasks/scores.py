"""Scores of predictions, those usual for each kind. A score that has no value is NaN."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from hpcdistill.data.arrays import Array
from hpcdistill.data.batches import IGNORED
from hpcdistill.tasks.objective import Binary, EvaluationObjective

BINS = 10


class Scores(Protocol):
    """Scores of one model, accumulated batch by batch."""

    def add(self, outputs: Tensor, target: Tensor) -> None:
        """Add the predictions of one batch: logits and targets in the shapes of the objective."""

    def result(self) -> dict[str, float]:
        """Return the scores over all batches so far, by name."""


class ClassScores:
    """Loss in nats, perplexity and accuracy of predictions of one class among several; keeps no predictions."""

    def __init__(self, objective: EvaluationObjective) -> None:
        self._objective = objective
        self._loss, self._right, self._count = 0.0, 0, 0

    def add(self, outputs: Tensor, target: Tensor) -> None:
        """See `Scores`."""
        self._loss += self._objective.cross_entropy(outputs, target).double().sum().item()
        self._right += int((self._objective.predict_class(outputs) == target).sum())
        self._count += int((target != IGNORED).sum())

    def result(self) -> dict[str, float]:
        """See `Scores`."""
        loss = self._loss / self._count
        perplexity = torch.tensor(loss, dtype=torch.float64).exp().item()  # inf, where math.exp would raise
        return {"loss": loss, "perplexity": perplexity, "accuracy": self._right / self._count}


class BinaryScores:
    """Scores of predictions of a binary label; keeps one logit and one label for each.

    Args:
        bayes_log_loss: loss in nats that no model can improve on; NaN if it is unknown.
    """

    def __init__(self, bayes_log_loss: float) -> None:
        self._bayes = bayes_log_loss
        self._logits: list[Tensor] = []
        self._labels: list[Tensor] = []

    def add(self, outputs: Tensor, target: Tensor) -> None:
        """See `Scores`."""
        self._logits.append(outputs.cpu())
        self._labels.append(target.cpu())

    def result(self) -> dict[str, float]:
        """See `Scores`; `calibration` is the mean prediction divided by the mean label, at best 1."""
        logits, target = torch.cat(self._logits), torch.cat(self._labels)
        probabilities, labels = logits.double().sigmoid().numpy(), target.bool().numpy()
        loss = Binary().cross_entropy(logits, target).double().mean().item()
        return {
            "log_loss": loss,
            "above_bayes": loss - self._bayes,
            "auc": auc(logits.numpy(), labels),
            "accuracy": float(((probabilities > 0.5) == labels).mean()),
            "calibration": float(probabilities.mean() / labels.mean()) if labels.any() else math.nan,
            "calibration_error": calibration_error(probabilities, labels),
        }


def auc(scores: Array, labels: Array) -> float:
    """Return the area under the ROC curve; NaN unless both labels occur.

    It is the probability that a random positive has a higher score than a random negative, ties counting half, and is
    computed from the sum of the positives' ranks (Mann and Whitney, 1947).

    Args:
        scores: [rows], in any unit.
        labels: bool [rows].
    """
    _, place, ties = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (ties.cumsum() - (ties - 1) / 2)[place]  # from 1; tied scores share the mean of their ranks
    positives, negatives = int(labels.sum()), int((~labels).sum())
    if not positives or not negatives:
        return math.nan
    return float((ranks[labels].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def calibration_error(probabilities: Array, labels: Array) -> float:
    """Return the expected calibration error: the mean distance of a bin's mean prediction from its mean label.

    After Naeini et al. 2015, with ten bins of equally many rows in order of the prediction. Equal predictions share a
    bin.

    Args:
        probabilities: predicted, float64 [rows].
        labels: bool [rows].
    """
    bins = np.searchsorted(np.quantile(probabilities, np.arange(1, BINS) / BINS), probabilities)
    return float(np.abs(np.bincount(bins, probabilities - labels)).sum() / len(labels))
