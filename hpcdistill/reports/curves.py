"""Losses of a run's groups over time, and the step at which they reach a target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from hpcdistill.reports.tables import printable
from hpcdistill.storage.metrics import GroupMetrics, Record, read_run


class Curve(GroupMetrics):
    """Metrics of one group, as reports show them."""

    @property
    def label(self) -> str:
        """Name of the group on a page."""
        return printable(f"{self.path.absolute().parent.name}, group {self.group}")

    @property
    def unit(self) -> str:
        """Thing that each prediction is for; "token" in runs of older versions, which do not record it."""
        return printable(str(self.header.get("unit", "token")))

    @property
    def steps_per_second(self) -> float:
        """Average over the whole run; NaN before the first record."""
        last = self.records[-1] if self.records else {"step": 0, "seconds": 0.0}
        return last["step"] / last["seconds"] if last["seconds"] else math.nan

    @property
    def examples_per_step(self) -> int:
        """Training examples of one step, of all groups of the run together."""
        return self.number("config.groups") * self.number("config.data.batch_size")

    @property
    def validations(self) -> list[Record]:
        """Records with a validation loss."""
        return [record for record in self.records if "validation_loss" in record]

    def reached(self, target: float) -> Record | None:
        """Return the first record whose validation loss is `target` or less, None if there is none."""
        return next((record for record in self.validations if record["validation_loss"] <= target), None)


def read_curves(run: Path) -> list[Curve]:
    """Return the curve of each group of a run that has started.

    Raises:
        UserError: the folder holds no metrics.
    """
    return [Curve(**vars(metrics)) for metrics in read_run(run)]


def nats(curves: Sequence[Curve]) -> str:
    """Return the unit of the losses, such as "nats per token"."""
    return " or ".join(sorted({f"nats per {curve.unit}" for curve in curves}))


def sources(curves: Sequence[Curve]) -> str:
    """Return the sources of the data, as the stores name them."""
    return "; ".join(sorted({printable(str(curve.header.get("data_source", "unknown"))) for curve in curves}))
