"""How the loss of each group of a run fell, and when it had fallen far enough."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from hpcdistill.reports.tables import printable
from hpcdistill.storage.metrics import GroupMetrics, Record, read_run


class Curve(GroupMetrics):
    """One group of one run."""

    @property
    def label(self) -> str:
        """How pages call it."""
        return printable(f"{self.path.absolute().parent.name}, group {self.group}")

    @property
    def unit(self) -> str:
        """Of what there is one prediction each; runs that do not say were of text."""
        return printable(str(self.header.get("unit", "token")))

    @property
    def steps_per_second(self) -> float:
        """Average over the whole run."""
        last = self.records[-1] if self.records else {"step": 0, "seconds": 0.0}
        return last["step"] / last["seconds"] if last["seconds"] else math.nan

    @property
    def examples_per_step(self) -> int:
        """What all groups of the run learn from in one step, together."""
        return self.number("config.groups") * self.number("config.data.batch_size")

    @property
    def validations(self) -> list[Record]:
        """The records with a validation loss."""
        return [record for record in self.records if "validation_loss" in record]

    def reached(self, target: float) -> Record | None:
        """The first validation at which the loss was `target` or less."""
        return next((record for record in self.validations if record["validation_loss"] <= target), None)


def read_curves(run: Path) -> list[Curve]:
    """One for each group of a run that has begun.

    Raises:
        UserError: there is none.
    """
    return [Curve(**vars(metrics)) for metrics in read_run(run)]


def nats(curves: Sequence[Curve]) -> str:
    """In what losses are measured."""
    return " or ".join(sorted({f"nats per {curve.unit}" for curve in curves}))


def sources(curves: Sequence[Curve]) -> str:
    """Where the data was from."""
    return "; ".join(sorted({printable(str(curve.header.get("data_source", "unknown"))) for curve in curves}))
