"""What a run has done, as JSON lines that anyone can read while it goes on."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcdistill.errors import UserError, warn
from hpcdistill.whole_file import open_to_append, remove_litter, write_whole

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

    Opened again at a restart, it forgets the steps that the restart will repeat and goes on. A disk that takes no more
    costs records and a warning, not the run.

    Args:
        path: the file; its folder is made.
        header: facts of the run, the first line; `starts`, a fact of each time that the run was started, is added.
        step: of the restart, 0 for a new run.

    Raises:
        UserError: the file cannot be made; what was there before is untouched.
    """

    def __init__(self, path: Path, header: Record, step: int) -> None:
        before, records = read_metrics(path)
        kept = [record for record in records if record["step"] <= step] if step else []
        self._elapsed = kept[-1]["seconds"] if kept else 0.0
        self._started = time.perf_counter()
        header = header | {"starts": [*before.get("starts", []), _start(step)]}
        try:
            remove_litter(path)
            write_whole(path, b"".join(map(_line, [header, *kept])))
            self._file = open_to_append(path)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}; make room there") from None
        self._complete = True

    def record(self, step: int, values: Record) -> None:
        """Append one line; `seconds` of training so far, earlier starts included, is added."""
        seconds = self._elapsed + time.perf_counter() - self._started
        line = _line({"step": step, "seconds": round(seconds, 3), **values})
        size = self._file.tell()
        try:
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            with contextlib.suppress(OSError):  # of a disk that takes nothing at all any more
                self._file.truncate(size)  # no half line that the next one would be glued to
                self._file.seek(size)
            if self._complete:
                warn(f"records are missing from {self._file.name}, from step {step} on: {error}")
            self._complete = False

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _start(step: int) -> Record:
    """Where and when the run goes on."""
    facts = {"step": step, "time": time.time(), "host": socket.gethostname(), "pid": os.getpid()}
    slurm = {"slurm_job": "SLURM_JOB_ID", "slurm_restart_count": "SLURM_RESTART_COUNT"}
    return facts | {key: int(os.environ[name]) for key, name in slurm.items() if name in os.environ}


def _line(record: Record) -> bytes:
    return f"{json.dumps(record)}\n".encode()


def read_metrics(path: Path) -> tuple[Record, list[Record]]:
    """Header and records of a metrics file, both empty where there is none.

    What follows a damaged line is left out: a line that is being written, or what a node has made of its last ones when
    it lost power.
    """
    records: list[Record] = []
    with suppress(FileNotFoundError, ValueError):
        for line in path.read_bytes().rpartition(b"\n")[0].splitlines():
            records.append(json.loads(line))
    return (records[0], records[1:]) if records else ({}, [])


@dataclass(frozen=True)
class GroupMetrics:
    """What one group has told so far."""

    path: Path
    group: int
    header: Record
    records: list[Record]

    def column(self, key: str) -> tuple[list[int], list[Any]]:
        """Steps and values of the records that have `key`."""
        chosen = [record for record in self.records if key in record]
        return [record["step"] for record in chosen], [record[key] for record in chosen]

    @property
    def best(self) -> float:
        """Lowest validation loss, in nats; NaN before the first one."""
        return min(self.column("validation_loss")[1], default=math.nan)

    @property
    def restarts(self) -> int:
        """How often the run has been started again."""
        return len(self.header.get("starts", [])[1:])


def read_run(run_dir: Path) -> list[GroupMetrics]:
    """The metrics of each group of a run that has begun, by number.

    Raises:
        UserError: there is none.
    """
    files = [(path, group, *read_metrics(path)) for group, path in metrics_paths(run_dir).items()]
    told = [GroupMetrics(path, group, header, records) for path, group, header, records in files if header]
    if not told:
        raise UserError(f"{run_dir} holds no metrics of a run; name the run_dir of a training")
    return told
