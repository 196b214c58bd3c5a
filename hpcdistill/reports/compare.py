"""What runs cost until their loss was low enough: steps, time, and what was learned from."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpcdistill.errors import UserError
from hpcdistill.reports.curves import Curve, nats, read_curves, sources
from hpcdistill.reports.page import Panel, by_step, figure, loss_by_examples, loss_by_time, page, svg, table
from hpcdistill.reports.tables import aligned, cell, write_text


@dataclass(frozen=True)
class Reached:
    """When the validation loss was first as low as the target."""

    group: int
    """Whose loss."""
    steps: int
    seconds: float
    """Of training, all starts of the run together."""
    examples: int
    """What all groups of the run had learned from in as many steps, together."""


@dataclass(frozen=True)
class Run:
    """One run; everything that is not of one group is of all of them together."""

    run: str
    groups: int
    ranks: int
    batch: int
    """Of one group."""
    examples_per_step: int
    """Runs for which it is equal take equal computation per step."""
    best: float
    """Lowest validation loss of any group; NaN before the first."""
    reached: Reached | None
    """By the first group that did; None where none has."""
    ratio: float
    """Steps to the target, in relation to those of the first run; NaN where either has not reached it."""
    by_group: list[Reached]
    """The same for each group that has."""


@dataclass(frozen=True)
class Comparison:
    """Of runs, the first of which is the baseline."""

    target: float
    unit: str
    """Of losses."""
    runs: list[Run]

    @property
    def titles(self) -> list[str]:
        """Of the columns."""
        return [
            *("", "groups", "ranks", "batch", "examples per step", "best loss"),
            *(f"steps to {cell(self.target)}", "ratio of steps", "seconds", "examples"),
        ]

    @property
    def rows(self) -> list[list[str]]:
        """The cells of each run."""
        return [
            [
                *(run.run, str(run.groups), str(run.ranks), str(run.batch), str(run.examples_per_step)),
                *(cell(run.best), *_cells(run)),
            ]
            for run in self.runs
        ]

    @property
    def note(self) -> str:
        """What the columns are of."""
        return (
            f"Losses in {self.unit}; batch per group, ranks and examples of all groups; steps, seconds and examples "
            "until the first group of a run reached the target."
        )

    def table(self) -> str:
        """For people."""
        return "\n".join([*aligned([self.titles, *self.rows]), "", self.note])


def compare(runs: Sequence[Path], target: float | None = None) -> Comparison:
    """What each of `runs` took to reach a validation loss, from its metrics alone.

    A run has reached it with the first of its groups, one model being enough to use; `by_group` has the others.

    Args:
        runs: run folders; the first is what the others are measured by.
        target: the loss; without it, the lowest that all runs have reached.

    Raises:
        UserError: a folder without metrics, losses that are of different units, or no target and a run without a loss.
    """
    curves = [read_curves(run) for run in runs]
    everyone = [curve for of_run in curves for curve in of_run]
    if len({curve.unit for curve in everyone}) > 1:
        raise UserError(f"losses are in {nats(everyone)}, which cannot be compared; name runs on data of one kind")
    if target is None:
        target = _common_target(runs, curves)
    baseline = _first(_by_group(curves[0], target))
    compared = [_run(run, of_run, target, baseline) for run, of_run in zip(runs, curves, strict=True)]
    return Comparison(target, nats(everyone), compared)


def draw_comparison(found: Comparison, output: Path) -> None:
    """Write the losses of all groups by step, by examples and in time; as a page also the table.

    Args:
        found: what to draw, from the same folders.
        output: a file ending in .html or .svg.

    Raises:
        UserError: it ends in something else, or cannot be written.
    """
    if output.suffix not in (".html", ".svg"):
        raise UserError(f"--output {output} is neither a page nor a figure; let it end in .html or .svg")
    curves = [curve for run in found.runs for curve in read_curves(Path(run.run))]
    panels = [
        Panel("step", found.unit, by_step("validation_loss")),
        Panel("examples, of all groups of a run", found.unit, loss_by_examples),
        Panel("seconds", found.unit, loss_by_time),
    ]
    drawing = svg(curves, panels, found.target)
    if output.suffix == ".html":
        title = "Steps to a loss: " + ", ".join(Path(run.run).absolute().name for run in found.runs)
        origin = f"<p>Data: {html.escape(sources(curves))}.</p>"
        drawing = page(title, origin, table(found.titles, found.rows, found.note), figure("Validation loss", drawing))
    write_text(output, drawing, "--output")


def _common_target(runs: Sequence[Path], curves: list[list[Curve]]) -> float:
    lowest = [_best(of_run) for of_run in curves]
    for run, best in zip(runs, lowest, strict=True):
        if math.isnan(best):
            raise UserError(f"{run} has no validation loss yet; wait for its first, leave it out, or name a --target")
    return max(lowest)


def _best(curves: list[Curve]) -> float:
    return min((curve.best for curve in curves if curve.validations), default=math.nan)


def _run(run: Path, curves: list[Curve], target: float, baseline: Reached | None) -> Run:
    by_group = _by_group(curves, target)
    reached = _first(by_group)
    return Run(
        run=str(run),
        groups=curves[0].number("config.groups"),
        ranks=sum(curve.number("ranks_per_group") for curve in curves),
        batch=curves[0].number("config.data.batch_size"),
        examples_per_step=curves[0].examples_per_step,
        best=_best(curves),
        reached=reached,
        ratio=reached.steps / baseline.steps if reached and baseline else math.nan,
        by_group=by_group,
    )


def _by_group(curves: list[Curve], target: float) -> list[Reached]:
    reached = [(curve, record) for curve in curves if (record := curve.reached(target))]
    return [Reached(c.group, r["step"], r["seconds"], r["step"] * c.examples_per_step) for c, r in reached]


def _first(reached: list[Reached]) -> Reached | None:
    return min(reached, key=lambda one: one.steps, default=None)


def _cells(run: Run) -> list[str]:
    if run.reached is None:
        return ["not reached", "-", "-", "-"]
    return [f"{run.reached.steps:,}", cell(run.ratio), f"{run.reached.seconds:,.1f}", f"{run.reached.examples:,}"]
