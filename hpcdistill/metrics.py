"""What a run has done, as JSON lines that anyone can read while it goes on."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def metrics_path(run_dir: Path, group: int) -> Path:
    """Where a group writes its metrics."""
    return run_dir / f"metrics-g{group}.jsonl"


def metrics_paths(run_dir: Path) -> dict[int, Path]:
    """The metrics there are by group, which may be jobs of their own and not all have begun."""
    found = ((re.fullmatch(r"metrics-g(\d+)\.jsonl", path.name), path) for path in run_dir.glob("metrics-g*.jsonl"))
    return dict(sorted((int(match[1]), path) for match, path in found if match))


class Metrics:
    """One group's metrics file: a header line, then one line for each record.

    Opened again at a restart, it forgets the steps that the restart will repeat and goes on.

    Args:
        path: the file; its folder is made.
        header: facts of the run, the first line.
        step: of the restart, 0 for a new run.
    """

    def __init__(self, path: Path, header: Record, step: int) -> None:
        kept = [record for record in read_metrics(path)[1] if record["step"] <= step] if step else []
        path.parent.mkdir(parents=True, exist_ok=True)
        self._elapsed = kept[-1]["seconds"] if kept else 0.0
        self._started = time.perf_counter()
        self._file = path.open("w")
        for record in [header, *kept]:
            self._write(record)

    def record(self, step: int, values: Record) -> None:
        """Append one line; `seconds` of training so far, earlier starts included, is added."""
        seconds = self._elapsed + time.perf_counter() - self._started
        self._write({"step": step, "seconds": round(seconds, 3), **values})

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, record: Record) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()


def read_metrics(path: Path) -> tuple[Record, list[Record]]:
    """Header and records of a metrics file, both empty where there is none; a half-written last line is left out."""
    if not path.exists():
        return {}, []
    whole_lines = path.read_text().rpartition("\n")[0].splitlines()
    records = [json.loads(line) for line in whole_lines]
    return (records[0], records[1:]) if records else ({}, [])
