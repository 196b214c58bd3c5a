"""Figures of what a run measures about itself: noise of the gradient, ensemble, progress and parts of a step."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes

from hpcdistill.reports.curves import Curve, nats
from hpcdistill.reports.page import Panel, by_step, figure, svg

STYLES = {"data": ":", "teachers": "--", "exchange": "-.", "averaging": "-"}
"""Line styles of the parts of a step."""


def meter_figures(curves: Sequence[Curve]) -> list[str]:
    """Return the HTML of the figures: each shows the curves that have its metrics, and is left out if none has."""
    loss = nats(curves)
    figures = [
        ("Gradient noise scale and batch size", "noise_scale", [Panel("step", "examples", _noise)]),
        (
            "Ensemble of the groups on a sample of the validation data",
            "ensemble_loss",
            [Panel("step", loss, _ensemble)],
        ),
        (
            "Progress of the loss",
            "loss_slope",
            [
                Panel("step", f"{loss}, fall per ln(step)", by_step("loss_slope")),
                Panel("step", f"{loss}, validation above training", by_step("train_validation_gap")),
            ],
        ),
        ("Parts of a step beside computing", "part_seconds", [Panel("step", "% of a step", _parts)]),
    ]
    found = [(title, [each for each in curves if any(each.column(key)[1])], panels) for title, key, panels in figures]
    return [figure(title, svg(drawn, panels)) for title, drawn, panels in found if drawn]


def _noise(axes: Axes, curve: Curve) -> None:
    steps, scales = curve.column("noise_scale")
    axes.plot(steps, scales, label=f"{curve.label}: noise scale")
    batch = curve.number("config.data.batch_size")
    axes.plot(steps, [batch] * len(steps), ":", label=f"{curve.label}: batch")
    axes.plot(*curve.column("critical_batch"), "--", label=f"{curve.label}: critical batch")
    axes.set_yscale("log")


def _ensemble(axes: Axes, curve: Curve) -> None:
    steps, members = curve.column("members_loss")
    axes.plot(steps, [losses[0] for losses in members], label=f"{curve.label}: alone")
    axes.plot(*curve.column("ensemble_loss"), "--", label=f"{curve.label}: mean of all predictions")


def _parts(axes: Axes, curve: Curve) -> None:
    steps, recorded = curve.column("part_seconds")
    for part, style in STYLES.items():
        shares = [100 * parts.get(part, math.nan) / (sum(parts.values()) or math.nan) for parts in recorded]
        axes.plot(steps, shares, style, label=f"{curve.label}: {part}", linewidth=1)
