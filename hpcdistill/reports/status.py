"""Progress of a run as a table, read from the files that the run writes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path

from hpcdistill.reports.tables import aligned, printable
from hpcdistill.storage.metrics import GroupMetrics, Record, read_run
from hpcdistill.storage.run_dir import RunDir

TITLES = (
    *("group", "state", "step", "steps/s", "loss", "validation", "best"),
    *("staleness", "restarts", "checkpoint", "quarantine"),
)
RECENT = 20
"""Number of records, those of validations and checkpoints included, over which the speed is averaged."""


def status(run_dir: Path) -> str:
    """Return a table with one row for each group, and below it what a row has no room to explain.

    The run may be in progress: files that do not exist yet, or no longer, are shown as such.

    Raises:
        UserError: the folder holds no metrics.
    """
    by_group = {metrics.group: metrics for metrics in read_run(run_dir)}
    count = max(metrics.number("config.groups") for metrics in by_group.values())
    rows = [_row(run_dir, by_group[group]) if group in by_group else _not_started(group) for group in range(count)]
    notes = [printable(note) for metrics in by_group.values() for note in _notes(metrics)]
    return "\n\n".join("\n".join(lines) for lines in (aligned([TITLES, *rows]), notes) if lines)


def _row(run_dir: Path, metrics: GroupMetrics) -> tuple[str, ...]:
    return (
        str(metrics.group),
        "finished" if _is_validated(metrics) else f"last heard {_age(metrics.path)}",
        f"{_step(metrics)} / {_steps(metrics)}",
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


def _step(metrics: GroupMetrics) -> int:
    return metrics.records[-1]["step"] if metrics.records else 0


def _steps(metrics: GroupMetrics) -> int:
    return metrics.number("config.train.steps")


def _is_validated(metrics: GroupMetrics) -> bool:
    """Return whether the group has made its last step and the validation after it."""
    validated, _ = metrics.column("validation_loss")
    return bool(validated) and validated[-1] >= _steps(metrics)


def _notes(metrics: GroupMetrics) -> Iterator[str]:
    if _step(metrics) >= _steps(metrics) and not _is_validated(metrics):
        yield (
            f"group {metrics.group} has made its last step, but not the validation after it; if it does not run any "
            "more, train --resume makes up for that"
        )
    for peer, reason in _quarantine(metrics).items():
        yield f"group {metrics.group} keeps group {peer} in quarantine: {reason}"


def _speed(records: list[Record]) -> str:
    seconds = records[-1]["seconds"] - records[0]["seconds"] if records else 0
    return f"{(records[-1]['step'] - records[0]['step']) / seconds:.3g}" if seconds else "-"


def _newest_loss(metrics: GroupMetrics, key: str) -> str:
    _, losses = metrics.column(key)
    return f"{losses[-1]:.3f}" if losses else "-"


def _newest(metrics: GroupMetrics) -> Record:
    """Return the newest record of training steps; those of validations and checkpoints have nothing about peers."""
    return next((record for record in reversed(metrics.records) if "loss" in record), {})


def _quarantine(metrics: GroupMetrics) -> dict[str, str]:
    """Return the reason why each peer is in quarantine now, by the number of its group."""
    reasons: dict[str, str] = _newest(metrics).get("quarantine", {})
    return reasons


def _restarts(metrics: GroupMetrics) -> str:
    starts: list[Record] = metrics.header.get("starts", [])
    by_slurm = starts[-1].get("slurm_restart_count") if starts else None
    return f"{metrics.restarts}" + ("" if by_slurm is None else f" (Slurm: {by_slurm})")


def _checkpoint(run_dir: Path, group: int) -> str:
    for step, path in RunDir(run_dir).find_checkpoints(group).items():
        return f"step {step}, {_age(path)}"  # the newest
    return "-"


def _age(path: Path) -> str:
    try:
        seconds = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return "now gone"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{max(seconds, 0):.0f} s ago"  # the clock of a file server may be ahead
