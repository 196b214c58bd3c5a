"""Metrics of a run: JSON lines that can be read while the run goes on."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcdistill.errors import UserError
from hpcdistill.storage.json_text import to_json
from hpcdistill.storage.run_dir import RunDir
from hpcdistill.storage.whole_file import open_to_append, remove_temporary_files, write_whole

logger = logging.getLogger(__name__)

Record = dict[str, Any]


class Metrics:
    """Metrics file of one group, open for writing: a header line, then one line for each record.

    At a restart, the records of steps that will be repeated are removed, and new ones appended. When the disk is full,
    records are lost, with a warning; the run goes on.

    Args:
        path: the file; its folder is made.
        header: facts of the run, for the first line; `starts`, with an entry for each start of the run, is added.
        step: step of the restart, 0 for a new run.

    Attributes:
        header: the first line of the file.
        kept: the records of earlier starts; clear it when they are no longer needed.

    Raises:
        UserError: the file cannot be written; the previous one is untouched.
    """

    def __init__(self, path: Path, header: Record, step: int) -> None:
        before, records = read_metrics(path)
        self.kept = [record for record in records if record["step"] <= step] if step else []
        self._elapsed = self.kept[-1]["seconds"] if self.kept else 0.0
        self._started = time.perf_counter()
        self.header = header | {"starts": [*before.get("starts", []), _start(step)]}
        try:
            remove_temporary_files(path)
            write_whole(path, b"".join(map(_line, [self.header, *self.kept])))
            self._file = open_to_append(path)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}; make room there") from None
        self._complete = True

    def record(self, step: int, values: Record) -> None:
        """Append a record of `step`; `seconds` of training so far, including earlier starts, is added."""
        seconds = self._elapsed + time.perf_counter() - self._started
        line = _line({"step": step, "seconds": round(seconds, 3), **values})
        size = self._file.tell()
        try:
            if not os.fstat(self._file.fileno()).st_nlink:
                raise FileNotFoundError(errno.ENOENT, "it was removed while the run goes on")
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            with contextlib.suppress(OSError):  # as when the disk accepts nothing at all
                self._file.truncate(size)  # no partial line that the next one would continue
                self._file.seek(size)
            if self._complete:
                logger.warning(f"records are missing from {self._file.name}, from step {step} on: {error}")
            self._complete = False

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _start(step: int) -> Record:
    """Return the facts of this start of the run."""
    facts = {"step": step, "time": time.time(), "host": socket.gethostname(), "pid": os.getpid()}
    slurm = {"slurm_job": "SLURM_JOB_ID", "slurm_restart_count": "SLURM_RESTART_COUNT"}
    return facts | {key: int(os.environ[name]) for key, name in slurm.items() if name in os.environ}


def _line(record: Record) -> bytes:
    return f"{to_json(record)}\n".encode()


def read_metrics(path: Path) -> tuple[Record, list[Record]]:
    """Read the header and the records of a metrics file, both empty if there is no file.

    Damaged lines, as after a power failure, are left out with a warning; an incomplete last line, which may be being
    written, is left out silently.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        lines = path.read_bytes().rpartition(b"\n")[0].splitlines() if path.is_file() else []
    except FileNotFoundError:  # it was removed meanwhile
        lines = []
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; correct its permissions, or move it away") from None
    header: Record = {}
    records, damaged = [], []
    for number, line in enumerate(lines, start=1):
        value = _parsed(line)
        if _is_record(value):
            if value.get("validation_loss", 0.0) is None:  # JSON has no word for a loss that is not finite
                value["validation_loss"] = math.nan
            records.append(value)
        elif number == 1 and _is_header(value):
            header = value
        else:
            damaged.append(number)
    if damaged:
        logger.warning(
            f"{path}: {len(damaged)} of {len(lines)} lines are damaged and left out, the first is line {damaged[0]}"
        )
    return header, records


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (type(value) is int and abs(value) < 1 << 63)


def _is_time(value: Any) -> bool:
    return _is_number(value) and 0 <= value < 1e12


def _is_step(value: Any) -> bool:
    return type(value) is int and 0 <= value < 10**10  # the digits in a checkpoint's name


def _is_by_name(value: Any, kind: Callable[[Any], bool], names: str = ".*") -> bool:
    return isinstance(value, dict) and all(re.fullmatch(names, name) and kind(item) for name, item in value.items())


FIELDS: dict[str, Callable[[Any], bool]] = {
    "step": _is_step,
    "seconds": _is_time,
    "steps": _is_step,
    "loss": _is_number,
    "gradient_norm": _is_number,
    "learning_rate": _is_number,
    "items_per_second": _is_number,
    "mfu": _is_number,
    "distillation_share": _is_number,
    "cross_entropy": _is_number,
    "gradient_square": _is_number,
    "gradient_variance": _is_number,
    "noise_scale": _is_number,
    "critical_batch": _is_number,
    "noise_skipped": _is_step,
    "validation_loss": lambda value: value is None or _is_number(value),
    "ensemble_loss": _is_number,
    "members_loss": lambda value: isinstance(value, list) and value != [] and all(map(_is_number, value)),
    "ensemble_gap": _is_number,
    "loss_slope": _is_number,
    "passes": _is_number,
    "train_validation_gap": _is_number,
    "checkpoint_seconds": _is_time,
    "part_seconds": lambda value: _is_by_name(value, _is_time),
    "staleness": lambda value: _is_by_name(value, _is_number, r"\d{1,9}"),
    "quarantine": lambda value: _is_by_name(value, lambda reason: isinstance(reason, str), r"\d{1,9}"),
}
"""Checks of the fields that readers rely on; every record has the first two."""


def _is_record(value: Any) -> bool:
    if not isinstance(value, dict) or not {"step", "seconds"} <= value.keys():
        return False
    return all(is_valid(value[name]) for name, is_valid in FIELDS.items() if name in value)


def _is_header(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    starts = value.get("starts", [])
    return isinstance(starts, list) and all(isinstance(start, dict) for start in starts)


@dataclass(frozen=True)
class GroupMetrics:
    """Metrics of one group so far."""

    path: Path
    group: int
    header: Record
    records: list[Record]

    def fact(self, key: str) -> Any:
        """Return a value of the header, such as "config.train.steps"; None if it has none."""
        value: Any = self.header
        for name in key.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return value

    def number(self, key: str) -> int:
        """Return a positive number of the header, such as "config.train.steps".

        Raises:
            UserError: the header has no such number.
        """
        value = self.fact(key)
        if not _is_step(value) or value == 0:
            raise self.damage(key)
        return int(value)

    def damage(self, key: str) -> UserError:
        """Return the error that the header lacks a usable value."""
        return UserError(
            f"{self.path} does not tell {key} in its first line, which is damaged; start the run again with "
            "--resume, which writes that line anew, or move the file away"
        )

    def column(self, key: str) -> tuple[list[int], list[Any]]:
        """Return the steps and values of the records that have `key`."""
        chosen = [record for record in self.records if key in record]
        return [record["step"] for record in chosen], [record[key] for record in chosen]

    @property
    def best(self) -> float:
        """Lowest finite validation loss, in nats; NaN before the first one."""
        return min(filter(math.isfinite, self.column("validation_loss")[1]), default=math.nan)

    @property
    def restarts(self) -> int:
        """Number of restarts of the run."""
        return len(self.header.get("starts", [])[1:])


def read_run(run_dir: Path) -> list[GroupMetrics]:
    """Read the metrics of each group of a run that has begun, in the order of their numbers.

    Raises:
        UserError: no group has begun.
    """
    files = [(path, group, *read_metrics(path)) for group, path in RunDir(run_dir).find_metrics().items()]
    read = [GroupMetrics(path, group, header, records) for path, group, header, records in files if header or records]
    if not read:
        raise UserError(f"{run_dir} holds no metrics of a run; name the run_dir of a training")
    return read
