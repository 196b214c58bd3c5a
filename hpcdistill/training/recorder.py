"""What the training loop tells about itself: metrics for machines, one live line for people."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tqdm import tqdm

from hpcdistill.codistill.fixed_teachers import FixedTeachers
from hpcdistill.codistill.peer_teachers import Teachers
from hpcdistill.config.schema import Config
from hpcdistill.distributed.groups import Groups
from hpcdistill.errors import UserError
from hpcdistill.exchange.traffic import TrafficStats
from hpcdistill.storage.metrics import Metrics, Record
from hpcdistill.storage.run_dir import RunDir
from hpcdistill.training.tensorboard import Events

RECORD_EVERY = 10
"""Steps between two records. The loss is looked at only then, so that a GPU need not wait for its host."""


class Recorder:
    """Follows one group's training; a context manager.

    Args:
        config: the run.
        groups: who is who; leaders write the metrics, the world's rank 0 shows the bar.
        header: facts of the run, the first line of the metrics.
        step: at which this start of the run begins.
    """

    def __init__(self, config: Config, groups: Groups, header: Record, step: int) -> None:
        self._groups = groups
        run = RunDir(config.run_dir)
        self._metrics = Metrics(run.metrics(groups.group), header, step) if groups.is_leader else None
        self._events: Events | None = None
        if groups.is_leader and config.train.tensorboard:
            self._events = Events(run.tensorboard(groups.group), step)
        self._shows = groups.world.rank == 0
        self._bar = _bar(config.train.steps, "step", self._shows, initial=step, leave=True, delay=0)
        self._losses = torch.zeros((), device=groups.device)
        self._steps = 0
        self._shown = {"loss": "-", "validation": "-", "staleness": "-"}
        self._seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        """Add the wall time of the `with` block to `part` of the next record, in seconds."""
        begin = time.perf_counter()
        yield
        self._seconds[part] += time.perf_counter() - begin

    def stepped(
        self, step: int, loss: torch.Tensor, teachers: Teachers | FixedTeachers, traffic: TrafficStats, up_to_here: bool
    ) -> None:
        """Take note of one step; now and then, collectively over the group, make a record of the last few.

        Args:
            step: which one.
            loss: of this rank.
            teachers: their staleness is recorded, and who is in quarantine.
            traffic: of this rank.
            up_to_here: make a record now, because the run may go on from here; so no step is left out or told twice.

        Raises:
            UserError: a loss since the last record was not finite.
        """
        self._bar.update()
        self._losses += loss.detach()
        self._steps += 1
        if step % RECORD_EVERY and not up_to_here:
            return
        mean = self._losses.item() / self._steps
        if not math.isfinite(mean):
            raise UserError(
                f"group {self._groups.group}: the loss became {mean} in the {self._steps} steps up to step {step}; "
                "lower --optimizer.lr and go on from the last checkpoint with --resume"
            )
        moved = self._groups.sum(traffic)
        values = {
            "loss": self._groups.sum(mean) / self._groups.size,
            "steps": self._steps,
            "staleness": teachers.staleness(step),
            "quarantine": teachers.quarantine,
            "part_seconds": {part: total / self._steps for part, total in self._seconds.items()},
            "bytes": {"published": moved.published, "fetched": moved.fetched, "discarded": moved.discarded},
        }
        self._record(step, values)
        self._losses.zero_()
        self._steps = 0
        self._seconds.clear()

    def validated(self, step: int, loss: float) -> None:
        """Record a validation loss, in nats."""
        self._record(step, {"validation_loss": loss})

    def validating(self, batches: int) -> Iterator[int]:
        """Count the batches of a validation, and show how far it is in place of the training's bar."""
        with _bar(batches, "batch", self._shows, desc="validation") as bar:
            yield from bar

    def saved(self, step: int, seconds: float) -> None:
        """Record for how long making a checkpoint has kept training from going on."""
        self._record(step, {"checkpoint_seconds": seconds})

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self._metrics:
            self._metrics.close()
        if self._events:
            self._events.close()

    def _record(self, step: int, values: Record) -> None:
        if self._metrics:
            self._metrics.record(step, values)
        if self._events:
            self._events.record(step, values)
        if "loss" in values:
            self._shown["loss"] = f"{values['loss']:.3f}"
            self._shown["staleness"] = max(values["staleness"].values(), default="-")
        if "validation_loss" in values:
            self._shown["validation"] = f"{values['validation_loss']:.3f}"
        self._bar.set_postfix(self._shown, refresh=False)


def _bar(total: int, unit: str, shown: bool, **options: Any) -> Any:
    """A bar of `total` units that is shown for a while, if it takes long enough; `options` are those of tqdm."""
    # mpirun hands ranks a pipe and not the terminal, so a pipe alone does not mean a log; a batch job or CI does.
    logged = not sys.stderr.isatty() and any(name in os.environ for name in ("SLURM_JOB_ID", "CI"))
    interval = 30 if logged else 0.5
    usual = {
        "disable": not shown,
        "mininterval": interval,
        "delay": interval,
        "leave": logged,
        "position": 0,  # where there is a bar already, this one takes its place for a while
        "dynamic_ncols": True,
        "bar_format": "{l_bar}{bar}{r_bar}\n" if logged else None,  # srun passes on whole lines only
    }
    return tqdm(range(total), unit=unit, **(usual | options))
