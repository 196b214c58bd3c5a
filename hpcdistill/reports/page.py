"""Self-contained HTML pages of tables and figures."""

from __future__ import annotations

import html
import io
import warnings
from collections.abc import Callable, Sequence
from string import Template
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hpcdistill.reports.curves import Curve
from hpcdistill.reports.tables import printable

matplotlib.use("svg")
matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text: small files, searchable
matplotlib.rcParams["text.parse_math"] = False  # a run may be named a$b$

PAGE = Template(
    """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .3rem .8rem; border-bottom: 1px solid #ddd }
th { text-align: left } td.number { text-align: right; font-variant-numeric: tabular-nums }
svg { max-width: 100%; height: auto } .note { color: #666 }
</style>
<h1>$title</h1>
$content
</html>
"""
)


class Panel(NamedTuple):
    """Axes of a figure, and the function that draws a curve in them."""

    x: str
    y: str
    draw: Callable[[Axes, Curve], None]


def page(title: str, *content: str) -> str:
    """Return a whole page.

    Args:
        title: plain text.
        content: HTML of its parts.
    """
    return PAGE.substitute(title=html.escape(printable(title)), content="\n".join(content))


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], note: str) -> str:
    """Return the HTML of a table with a note below it.

    Args:
        titles: of the columns; plain text.
        rows: cells of each row, the row's name first; plain text.
        note: plain text.
    """
    lines = ["".join(f"<th>{html.escape(title)}</th>" for title in titles)]
    for name, *cells in rows:
        numbers = "".join(f'<td class="number">{html.escape(cell)}</td>' for cell in cells)
        lines.append(f"<td>{html.escape(printable(name))}</td>{numbers}")
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<table>{body}</table><p class="note">{html.escape(note)}</p>'


def svg(curves: Sequence[Curve], panels: Sequence[Panel], target: float | None = None) -> str:
    """Draw all curves in each panel, the panels one below the other.

    Args:
        curves: what to draw.
        panels: axes of the figure.
        target: loss at which to draw a dotted line; None for no line.

    Returns:
        An SVG document.
    """
    figure = Figure(figsize=(9, 4 * len(panels)), layout="constrained")
    for axes, panel in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        for curve in curves:
            panel.draw(axes, curve)
        if target is not None:
            axes.axhline(target, color="gray", linestyle=":", label=f"{target:.4f}")
        axes.set(xlabel=panel.x, ylabel=panel.y)
        axes.grid(alpha=0.3)
        _legend(axes)
    file = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Glyph .* missing"
        )  # a font of this machine; the SVG holds text, for the reader's fonts
        figure.savefig(file, format="svg")
    return file.getvalue()


def _legend(axes: Axes) -> None:
    """Add a legend with all lines, including names that begin with an underscore, which Matplotlib leaves out."""
    lines = axes.get_lines()
    legend = axes.legend(lines, map(str, range(len(lines))), frameon=False)
    for line, text in zip(lines, legend.get_texts(), strict=True):
        text.set_text(str(line.get_label()))


def figure(title: str, drawing: str) -> str:
    """Return the HTML of an SVG document under a title."""
    return f"<h2>{title}</h2>\n{drawing[drawing.index('<svg') :]}"


def by_step(key: str) -> Callable[[Axes, Curve], None]:
    """Return a function that draws the values of `key` against the step."""

    def draw(axes: Axes, curve: Curve) -> None:
        axes.plot(*curve.column(key), label=curve.label)

    return draw


def loss_by_time(axes: Axes, curve: Curve) -> None:
    """Draw the validation loss against the seconds of training."""
    axes.plot([r["seconds"] for r in curve.validations], _losses(curve), label=curve.label)


def loss_by_examples(axes: Axes, curve: Curve) -> None:
    """Draw the validation loss against the training examples of all groups together."""
    axes.plot([r["step"] * curve.examples_per_step for r in curve.validations], _losses(curve), label=curve.label)


def _losses(curve: Curve) -> list[float]:
    return [record["validation_loss"] for record in curve.validations]
