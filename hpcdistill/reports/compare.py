"""Cost of runs until their validation loss reached a target: steps, time and training examples."""

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
    """Cost until the validation loss was first at or below the target."""

    group: int
    """Group whose loss it was."""
    steps: int
    seconds: float
    """Seconds of training, all starts of the run together."""
    examples: int
    """Training examples of that many steps, of all groups of the run together."""


@dataclass(frozen=True)
class Run:
    """One run; numbers are those of all its groups together, unless stated otherwise."""

    run: str
    groups: int
    ranks: int
    batch: int
    """Batch size of one group."""
    examples_per_step: int
    """Training examples of one step; runs with equal numbers spend equal computation per step."""
    best: float
    """Lowest validation loss of any group; NaN before the first."""
    reached: Reached | None
    """Cost of the first group to reach the target; None if none has."""
    ratio: float
    """Steps to the target divided by those of the baseline; NaN where either run has not reached it."""
    by_group: list[Reached]
    """Cost of each group that has reached the target."""


@dataclass(frozen=True)
class Comparison:
    """Comparison of runs, the first of which is the baseline."""

    target: float
    """Validation loss to reach."""
    unit: str
    """Unit of losses, such as "nats per token"."""
    runs: list[Run]

    @property
    def titles(self) -> list[str]:
        """Titles of the columns."""
        return [
            *("", "groups", "ranks", "batch", "examples per step", "best loss"),
            *(f"steps to {cell(self.target)}", "ratio of steps", "seconds", "examples"),
        ]

    @property
    def rows(self) -> list[list[str]]:
        """Cells of each run."""
        return [
            [
                *(run.run, str(run.groups), str(run.ranks), str(run.batch), str(run.examples_per_step)),
                *(cell(run.best), *_cells(run)),
            ]
            for run in self.runs
        ]

    @property
    def note(self) -> str:
        """Explanation of the columns."""
        return (
            f"Losses in {self.unit}; batch per group, ranks and examples of all groups; steps, seconds and examples "
            "until the first group of a run reached the target."
        )

    def table(self) -> str:
        """Return the comparison as text."""
        return "\n".join([*aligned([self.titles, *self.rows]), "", self.note])


def compare(runs: Sequence[Path], target: float | None = None) -> Comparison:
    """Compare what `runs` took to reach a validation loss, from their metrics alone.

    A run counts as having reached it once its first group has, since one model is enough to use; `by_group` has the
    others.

    Args:
        runs: run folders, the baseline first.
        target: the loss, in nats; by default the lowest that all runs have reached.

    Raises:
        UserError: a folder has no metrics, losses have different units, or no target is given and a run has no loss.
    """
    curves = [read_curves(run) for run in runs]
    all_curves = [curve for of_run in curves for curve in of_run]
    if len({curve.unit for curve in all_curves}) > 1:
        raise UserError(f"losses are in {nats(all_curves)}, which cannot be compared; name runs on data of one kind")
    if target is None:
        target = _common_target(runs, curves)
    baseline = _first(_by_group(curves[0], target))
    compared = [_run(run, of_run, target, baseline) for run, of_run in zip(runs, curves, strict=True)]
    return Comparison(target, nats(all_curves), compared)


def draw_comparison(found: Comparison, output: Path) -> None:
    """Draw the losses of all groups against steps, examples and seconds; a page shows the table too.

    Args:
        found: a comparison; its run folders are read again.
        output: the file to write, ending in .html or .svg.

    Raises:
        UserError: the name has another ending, or the file cannot be written.
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
    return min(reached, key=lambda each: each.steps, default=None)


def _cells(run: Run) -> list[str]:
    if run.reached is None:
        return ["not reached", "-", "-", "-"]
    return [f"{run.reached.steps:,}", cell(run.ratio), f"{run.reached.seconds:,.1f}", f"{run.reached.examples:,}"]
