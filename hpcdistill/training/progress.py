"""Progress of a training over its validations: the slope of the loss, and its distance from the training loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import linear_regression

from hpcdistill.storage.metrics import Record

FEWEST = 3
"""Minimum number of validations of which a slope is computed."""


class Progress:
    """Validation losses so far, and the training losses since the last of them."""

    def __init__(self) -> None:
        self._validations: list[tuple[int, float]] = []
        self._training: list[tuple[int, float]] = []

    def add(self, record: Record) -> None:
        """Add the losses of a record of the metrics; those that are not finite are left out."""
        step, steps = record["step"], record.get("steps", 0)
        loss, validation = record.get("cross_entropy"), record.get("validation_loss")
        if loss is not None and math.isfinite(loss):
            self._training.append((steps, loss))
        if validation is not None:
            self._training.clear()
            if step and math.isfinite(validation):
                self._validations.append((step, validation))

    def metrics(self, step: int, loss: float) -> dict[str, float]:
        """Return the metrics `loss_slope` and `train_validation_gap` of a validation, those that are known and finite.

        Args:
            step: number of steps made.
            loss: loss of the validation, not yet added.
        """
        values: dict[str, float] = {}
        if not math.isfinite(loss) or not step:
            return values
        slope = loss_slope([*self._validations, (step, loss)])
        if slope is not None:
            values["loss_slope"] = slope
        if count := sum(steps for steps, _ in self._training):
            values["train_validation_gap"] = loss - sum(steps * each for steps, each in self._training) / count
        return values


def loss_slope(validations: Sequence[tuple[int, float]]) -> float | None:
    """Return -dL / d ln(step) in nats, by least squares over the second half of the steps; None for too few losses.

    Args:
        validations: step and loss of each validation, in the order of the steps.
    """
    last = validations[-1][0]
    chosen = [(math.log(step), loss) for step, loss in validations if 2 * step >= last and math.isfinite(loss)]
    return -linear_regression(*zip(*chosen, strict=True)).slope if len(chosen) >= FEWEST else None
