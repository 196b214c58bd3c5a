"""Page with the curves of one or more runs."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes

from hpcdistill.reports.curves import Curve, nats, read_curves, sources
from hpcdistill.reports.meters import meter_figures
from hpcdistill.reports.page import Panel, by_step, figure, loss_by_time, page, svg, table
from hpcdistill.reports.tables import printable
from hpcdistill.reports.verdicts import read_verdicts
from hpcdistill.storage.whole_file import write_whole


def write_report(runs: Sequence[Path], output: Path, summary: Sequence[str] = ()) -> None:
    """Write a page that compares `runs`, and print its sentences.

    It begins with `summary` and with the verdict on each run whose groups learn from each other.

    Args:
        runs: run folders with metrics.
        output: the HTML file to write.
        summary: sentences in plain text, one paragraph each.

    Raises:
        UserError: a folder holds no metrics.
        OSError: the page cannot be written.
    """
    curves = [curve for run in runs for curve in read_curves(run)]
    verdicts, named = read_verdicts(runs), len(runs) > 1
    sentences = [*summary, *(line for verdict in verdicts for line in verdict.lines(named))]
    text = page(
        "Codistillation: " + " and ".join(run.absolute().name for run in runs),
        *(f"<p>{html.escape(sentence)}</p>" for sentence in sentences),
        f"<p>Data: {html.escape(sources(curves))}.</p>",
        _table(curves),
        _quarantines(curves),
        *_figures(curves),
        *(part for verdict in verdicts for part in verdict.tables(named)),
    )
    write_whole(output, text)
    print(*sentences, f"report: {printable(str(output.resolve()))}", sep="\n")


def _table(curves: list[Curve]) -> str:
    losses = [curve.best for curve in curves]
    target = math.nan if any(map(math.isnan, losses)) else max(losses)  # the lowest loss that all of them have reached
    titles = [
        *("", "ranks", "batch", "parameters", "steps/s", "restarts", "seconds lost per checkpoint"),
        *("best validation loss", f"steps to {_number(target)}"),
    ]
    rows = []
    for curve in curves:
        reached = curve.reached(target)
        _, lost = curve.column("checkpoint_seconds")
        rows.append(
            [
                curve.label,
                str(curve.number("ranks_per_group")),
                str(curve.number("config.data.batch_size")),
                f"{curve.number('parameters'):,}",
                f"{curve.steps_per_second:.1f}",
                str(curve.restarts),
                f"{fmean(lost):.3f}" if lost else "-",
                _number(curve.best),
                "not reached" if reached is None else f"{reached['step']:,}",
            ]
        )
    return table(titles, rows, f"Losses in {nats(curves)}; ranks and batch per group.")


def _number(loss: float) -> str:
    return "-" if math.isnan(loss) else f"{loss:.3f}"


def _quarantines(curves: list[Curve]) -> str:
    """List the steps during which groups kept a peer in quarantine, and why; empty where none did."""
    lines = [printable(f"{curve.label}: {span}") for curve in curves for span in _spans(curve)]
    items = [f"<li>{html.escape(line)}</li>" for line in lines]
    return "\n".join(["<h2>Peers in quarantine</h2>", "<ul>", *items, "</ul>"]) if items else ""


def _spans(curve: Curve) -> Iterator[str]:
    recorded = [(record["step"], record.get("quarantine", {})) for record in curve.records if "loss" in record]
    for peer in sorted({peer for _, reasons in recorded for peer in reasons}, key=int):
        of_peer = [(step, reasons.get(peer)) for step, reasons in recorded]
        begins = [next(span) for _, span in groupby(of_peer, lambda item: item[1] is None)]
        for (begin, reason), (end, _) in pairwise([*begins, ("the end", None)]):
            if reason is not None:
                yield f"group {peer} from step {begin} to {end}: {reason}"


def _figures(curves: list[Curve]) -> list[str]:
    taught = [curve for curve in curves if any(curve.column("staleness")[1])]
    loss = nats(curves)
    items = " or ".join(sorted({f"{curve.unit}s" for curve in curves}))
    gradient, rate = by_step("gradient_norm"), by_step("learning_rate")
    figures = [
        ("Validation loss", curves, [Panel("step", loss, by_step("validation_loss"))]),
        ("Validation loss in time", curves, [Panel("seconds", loss, loss_by_time)]),
        ("Training loss, distillation term included", curves, [Panel("step", loss, by_step("loss"))]),
        ("Gradient and learning rate", curves, [Panel("step", "norm", gradient), Panel("step", "rate", rate)]),
        (
            "Throughput",
            curves,
            [
                Panel("step", "steps per second", _throughput),
                Panel("step", f"{items} per second and group", by_step("items_per_second")),
            ],
        ),
    ]
    if taught:
        share = Panel("step", "of the gradient", by_step("distillation_share"))
        figures += [
            ("Share of the distillation term in the gradient", taught, [share]),
            ("Staleness of the teachers", taught, [Panel("step", "steps", _staleness)]),
        ]
    return [*(figure(title, svg(drawn, panels)) for title, drawn, panels in figures), *meter_figures(curves)]


def _throughput(axes: Axes, curve: Curve) -> None:
    """Draw steps per second between one validation and the next, the time of validating included."""
    pairs = list(pairwise(curve.validations))
    rates = [(b["step"] - a["step"]) / ((b["seconds"] - a["seconds"]) or math.nan) for a, b in pairs]
    axes.plot([b["step"] for _, b in pairs], rates, label=curve.label)


def _staleness(axes: Axes, curve: Curve) -> None:
    steps, values = curve.column("staleness")
    for peer in sorted({peer for value in values for peer in value}):
        axes.plot(steps, [value.get(peer, math.nan) for value in values], label=f"{curve.label}, of group {peer}")
