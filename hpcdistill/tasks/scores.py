"""How good predictions are, by what is usual for their kind. A score that has no value is NaN."""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from hpcdistill.tasks.objective import Binary, Objective

BINS = 10

Array = np.ndarray[Any, np.dtype[Any]]


class Scores(Protocol):
    """Scores of one model, batch by batch."""

    def add(self, outputs: Tensor, target: Tensor) -> None:
        """Look at one batch, as the objective describes it."""

    def result(self) -> dict[str, float]:
        """The scores, by name, over all batches so far."""


class ClassScores:
    """Of predictions of one class among several: loss in nats, perplexity, accuracy. Keeps no predictions."""

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._loss, self._right, self._count = 0.0, 0, 0

    def add(self, outputs: Tensor, target: Tensor) -> None:
        """See `Scores`."""
        self._loss += self._objective.cross_entropy(outputs, target).double().sum().item()
        self._right += int((self._objective.answer(outputs) == target).sum())
        self._count += target.numel()

    def result(self) -> dict[str, float]:
        """See `Scores`."""
        loss = self._loss / self._count
        perplexity = torch.tensor(loss, dtype=torch.float64).exp().item()  # inf, where math.exp would raise
        return {"loss": loss, "perplexity": perplexity, "accuracy": self._right / self._count}


class BinaryScores:
    """Of predictions of yes or no; keeps one number for each.

    Args:
        bayes_log_loss: that no model can better, in nats; NaN where nobody knows it.
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
        """See `Scores`; `calibration` is the mean prediction in relation to the mean label, at best 1."""
        logits, target = torch.cat(self._logits), torch.cat(self._labels)
        chances, labels = logits.double().sigmoid().numpy(), target.bool().numpy()
        loss = Binary().cross_entropy(logits, target).double().mean().item()
        return {
            "log_loss": loss,
            "above_bayes": loss - self._bayes,
            "auc": auc(logits.numpy(), labels),
            "accuracy": float(((chances > 0.5) == labels).mean()),
            "calibration": float(chances.mean() / labels.mean()) if labels.any() else math.nan,
            "calibration_error": calibration_error(chances, labels),
        }


def auc(scores: Array, labels: Array) -> float:
    """The chance that a random yes has a higher score than a random no, equals counting half; NaN without either.

    By the sum of the ranks of the yes (Mann and Whitney, 1947).

    Args:
        scores: [rows], in any unit.
        labels: bool [rows].
    """
    _, place, equals = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (equals.cumsum() - (equals - 1) / 2)[place]  # from 1; equals share the mean of theirs
    yes, no = int(labels.sum()), int((~labels).sum())
    return float((ranks[labels].sum() - yes * (yes + 1) / 2) / (yes * no)) if yes and no else math.nan


def calibration_error(chances: Array, labels: Array) -> float:
    """Expected calibration error: how far the mean prediction and the mean label of a bin are apart, on average.

    Naeini et al. 2015, with ten bins of equally many rows, in order of the prediction. Equal predictions stay together.

    Args:
        chances: predicted, float64 [rows].
        labels: bool [rows].
    """
    bins = np.searchsorted(np.quantile(chances, np.arange(1, BINS) / BINS), chances)
    return float(np.abs(np.bincount(bins, chances - labels)).sum() / len(labels))
