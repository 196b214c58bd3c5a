"""How a run is going, as a table for people, from nothing but the files that it writes."""

from __future__ import annotations

import math
import time
from pathlib import Path

from hpcdistill.reports.tables import aligned, printable
from hpcdistill.storage.metrics import GroupMetrics, Record, read_run
from hpcdistill.storage.run_dir import checkpoint_paths

TITLES = (
    *("group", "state", "step", "steps/s", "loss", "validation", "best"),
    *("staleness", "restarts", "checkpoint", "quarantine"),
)
RECENT = 20
"""Records, validations and checkpoints among them, from which the speed is taken."""


def status(run_dir: Path) -> str:
    """A table with one row for each group of a run, and below it why peers are in quarantine.

    The run may go on meanwhile: what is not there yet, or no longer, is shown as such.

    Raises:
        UserError: the folder holds no metrics.
    """
    told = {metrics.group: metrics for metrics in read_run(run_dir)}
    count = max(metrics.number("config.groups") for metrics in told.values())
    rows = [_row(run_dir, told[group]) if group in told else _not_started(group) for group in range(count)]
    reasons = [
        printable(f"group {metrics.group} keeps group {peer} in quarantine: {reason}")
        for metrics in told.values()
        for peer, reason in _quarantine(metrics).items()
    ]
    return "\n\n".join("\n".join(lines) for lines in (aligned([TITLES, *rows]), reasons) if lines)


def _row(run_dir: Path, metrics: GroupMetrics) -> tuple[str, ...]:
    step = metrics.records[-1]["step"] if metrics.records else 0
    steps = metrics.number("config.train.steps")
    return (
        str(metrics.group),
        "finished" if step >= steps else f"last heard {_age(metrics.path)}",
        f"{step} / {steps}",
        _speed(metrics.records[-RECENT:]),
        _newest_loss(metrics, "loss"),
        _newest_loss(metrics, "validation_loss"),
        "-" if math.isnan(metrics.best) else f"{metrics.best:.3f}",
        " ".join(f"{peer}:{age}" for peer, age in _newest(metrics).get("staleness", {}).items()) or "-",
        _restarts(metrics),
        _checkpoint(run_dir, metrics.group),
        " ".join(_quarantine(metrics)) or "-",
    )


def _not_started(group: int) -> tuple[str, ...]:
    return (str(group), "not started", *["-"] * (len(TITLES) - 2))


def _speed(records: list[Record]) -> str:
    seconds = records[-1]["seconds"] - records[0]["seconds"] if records else 0
    return f"{(records[-1]['step'] - records[0]['step']) / seconds:.3g}" if seconds else "-"


def _newest_loss(metrics: GroupMetrics, key: str) -> str:
    _, losses = metrics.column(key)
    return f"{losses[-1]:.3f}" if losses else "-"


def _newest(metrics: GroupMetrics) -> Record:
    """The newest record of training steps; validations and checkpoints tell nothing of peers."""
    return next((record for record in reversed(metrics.records) if "loss" in record), {})


def _quarantine(metrics: GroupMetrics) -> dict[str, str]:
    """Why each peer is in quarantine now."""
    reasons: dict[str, str] = _newest(metrics).get("quarantine", {})
    return reasons


def _restarts(metrics: GroupMetrics) -> str:
    starts: list[Record] = metrics.header.get("starts", [])
    by_slurm = starts[-1].get("slurm_restart_count") if starts else None
    return f"{metrics.restarts}" + ("" if by_slurm is None else f" (Slurm: {by_slurm})")


def _checkpoint(run_dir: Path, group: int) -> str:
    paths = checkpoint_paths(run_dir / "checkpoints", group)
    return f"step {int(paths[0].stem[-10:])}, {_age(paths[0])}" if paths else "-"


def _age(path: Path) -> str:
    try:
        seconds = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return "now gone"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{max(seconds, 0):.0f} s ago"  # a file server's clock may be ahead
