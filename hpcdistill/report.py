"""One self-contained HTML page with the curves of one or more runs."""

from __future__ import annotations

import html
import io
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from statistics import fmean
from string import Template

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hpcdistill.metrics import GroupMetrics, read_run

matplotlib.use("svg")
matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text: small files, searchable

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
<p>Data: $source.</p>
$table
$quarantines
$figures
</html>
"""
)


class Curve(GroupMetrics):
    """One group of one run."""

    @property
    def label(self) -> str:
        """How the page calls it."""
        return f"{self.path.parent.name}, group {self.group}"

    @property
    def steps_per_second(self) -> float:
        """Average over the whole run."""
        last = self.records[-1] if self.records else {"step": 0, "seconds": 0.0}
        return last["step"] / last["seconds"] if last["seconds"] else math.nan

    def steps_to(self, target: float) -> int | None:
        """The first validated step at which the loss was `target` or less."""
        return next((s for s, loss in zip(*self.column("validation_loss"), strict=True) if loss <= target), None)


def write_report(runs: Sequence[Path], output: Path) -> None:
    """Compare `runs` on one page.

    Args:
        runs: run folders with metrics.
        output: the HTML file to write.

    Raises:
        UserError: a folder holds no metrics.
        OSError: the disk does not take the page.
    """
    curves = [Curve(**vars(metrics)) for run in runs for metrics in read_run(run)]
    page = PAGE.substitute(
        title=html.escape("Codistillation: " + " and ".join(run.name for run in runs)),
        source=html.escape("; ".join(sorted({str(curve.header["data_source"]) for curve in curves}))),
        table=_table(curves),
        quarantines=_quarantines(curves),
        figures="\n".join(_figures(curves)),
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page)
    print(f"report: {output.resolve()}")


def _table(curves: list[Curve]) -> str:
    target = max(curve.best for curve in curves)  # the lowest loss that all have reached
    titles = [
        *("", "ranks", "batch", "parameters", "steps/s", "restarts", "seconds lost per checkpoint"),
        *("best validation loss", f"steps to {target:.3f}"),
    ]
    rows = ["".join(f"<th>{title}</th>" for title in titles)]
    for curve in curves:
        reached = curve.steps_to(target)
        _, lost = curve.column("checkpoint_seconds")
        cells = [
            str(curve.header["ranks_per_group"]),
            str(curve.header["config"]["data"]["batch_size"]),
            f"{curve.header['parameters']:,}",
            f"{curve.steps_per_second:.1f}",
            str(curve.restarts),
            f"{fmean(lost):.3f}" if lost else "-",
            f"{curve.best:.3f}",
            "not reached" if reached is None else f"{reached:,}",
        ]
        rows.append(f"<td>{html.escape(curve.label)}</td>" + "".join(f'<td class="number">{c}</td>' for c in cells))
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return f'<table>{body}</table><p class="note">Losses in {_nats(curves)}; ranks and batch per group.</p>'


def _nats(curves: list[Curve]) -> str:
    return " or ".join(sorted({f"nats per {curve.header['unit']}" for curve in curves}))


def _quarantines(curves: list[Curve]) -> str:
    """When and why groups did without a peer's advice; nothing where none ever did."""
    items = [f"<li>{html.escape(f'{curve.label}: {span}')}</li>" for curve in curves for span in _spans(curve)]
    return "\n".join(["<h2>Peers in quarantine</h2>", "<ul>", *items, "</ul>"]) if items else ""


def _spans(curve: Curve) -> Iterator[str]:
    told = [(record["step"], record.get("quarantine", {})) for record in curve.records if "loss" in record]
    for peer in sorted({peer for _, reasons in told for peer in reasons}, key=int):
        of_peer = [(step, reasons.get(peer)) for step, reasons in told]
        begins = [next(span) for _, span in groupby(of_peer, lambda item: item[1] is None)]
        for (begin, reason), (end, _) in pairwise([*begins, ("the end", None)]):
            if reason is not None:
                yield f"group {peer} from step {begin} to {end}: {reason}"


def _figures(curves: list[Curve]) -> list[str]:
    taught = [curve for curve in curves if any(curve.column("staleness")[1])]
    nats = _nats(curves)
    figures = [
        _figure("Validation loss", "step", nats, curves, _by_step("validation_loss")),
        _figure("Validation loss in time", "seconds", nats, curves, _by_time),
        _figure("Training loss, distillation term included", "step", nats, curves, _by_step("loss")),
        _figure("Throughput", "step", "steps per second", curves, _throughput),
    ]
    if taught:
        figures += [
            _figure("Staleness of the teachers", "step", "steps", taught, _staleness),
            _figure("Cost of exchange and teachers", "step", "% of a step", taught, _cost),
        ]
    return figures


def _figure(title: str, x: str, y: str, curves: list[Curve], draw: Callable[[Axes, Curve], None]) -> str:
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    for curve in curves:
        draw(axes, curve)
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    svg = io.StringIO()
    figure.savefig(svg, format="svg")
    return f"<h2>{title}</h2>\n{svg.getvalue()[svg.getvalue().index('<svg') :]}"


def _by_step(key: str) -> Callable[[Axes, Curve], None]:
    def draw(axes: Axes, curve: Curve) -> None:
        axes.plot(*curve.column(key), label=curve.label)

    return draw


def _by_time(axes: Axes, curve: Curve) -> None:
    chosen = [record for record in curve.records if "validation_loss" in record]
    axes.plot([r["seconds"] for r in chosen], [r["validation_loss"] for r in chosen], label=curve.label)


def _throughput(axes: Axes, curve: Curve) -> None:
    """Between one validation and the next, so that each point bears its share of validating."""
    marks = [record for record in curve.records if "validation_loss" in record]
    pairs = list(pairwise(marks))
    rates = [(b["step"] - a["step"]) / (b["seconds"] - a["seconds"]) for a, b in pairs]
    axes.plot([b["step"] for _, b in pairs], rates, label=curve.label)


def _staleness(axes: Axes, curve: Curve) -> None:
    steps, values = curve.column("staleness")
    for peer in sorted({peer for value in values for peer in value}):
        axes.plot(steps, [value.get(peer, math.nan) for value in values], label=f"{curve.label}, of group {peer}")


def _cost(axes: Axes, curve: Curve) -> None:
    steps, values = curve.column("part_seconds")
    for part, style in (("exchange", "-"), ("teachers", "--")):
        shares = [100 * value.get(part, math.nan) * curve.steps_per_second for value in values]
        axes.plot(steps, shares, style, label=f"{curve.label}: {part}", linewidth=1)
