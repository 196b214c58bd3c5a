"""Records of a training: metrics for programs, a progress bar for people."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from tqdm import tqdm

from hpcdistill.codistill.session import Codistillation
from hpcdistill.config.schema import Config
from hpcdistill.data.batches import Batch
from hpcdistill.distributed.groups import Groups
from hpcdistill.errors import UserError
from hpcdistill.storage.metrics import Metrics, Record
from hpcdistill.storage.run_dir import RunDir
from hpcdistill.training.meters import distillation_share
from hpcdistill.training.setup import Parts
from hpcdistill.training.throughput import Throughput
from hpcdistill.training.trackers.opening import open_trackers

RECORD_EVERY = 10
"""Steps between two records; the loss is read only then, because reading it makes a GPU wait for its host."""

SHARE_EVERY = 50
"""Steps between two measurements of the distillation term's share, each of which costs a few percent of a step."""


class Recorder:
    """Records of one group's training; a context manager.

    Args:
        config: the run.
        groups: the groups; leaders write the metrics, rank 0 of the world shows the progress bar.
        parts: what is trained.
        header: facts of the run, the first line of the metrics.
        step: the number of steps made before this start of the run.
    """

    def __init__(self, config: Config, groups: Groups, parts: Parts, header: Record, step: int) -> None:
        self._groups = groups
        self._parts = parts
        self._temperature = config.codistill.temperature
        run = RunDir(config.run_dir)
        self._metrics = Metrics(run.metrics(groups.group), header, step) if groups.is_leader else None
        self._trackers = open_trackers(config, groups, self._metrics.header if self._metrics else {}, step)
        self._shows = groups.world.rank == 0
        self._bar = _bar(config.train.steps, "step", self._shows, initial=step, leave=True, delay=0)
        self._step = step
        self._losses = torch.zeros((), device=groups.device)
        self._steps = 0
        self._share: torch.Tensor | None = None
        self._shown = {"loss": "-", "validation": "-", "staleness": "-", f"{parts.task.unit}s/s": "-"}
        self._seconds: dict[str, float] = defaultdict(float)
        self._throughput = Throughput(config.train, groups, parts.task.objective, parts.model)

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        """Add the wall time of the `with` block to `part` of the next record, in seconds."""
        begin = time.perf_counter()
        yield
        self._seconds[part] += time.perf_counter() - begin

    @property
    def records_next(self) -> bool:
        """True if the next step ends the steps of a record."""
        return (self._step + 1) % RECORD_EVERY == 0

    def measure_share(self, outputs: Any, target: torch.Tensor, teachers: Sequence[Any], weight: float) -> None:
        """Measure the share of the distillation term in the gradient, on the leader, every `SHARE_EVERY` steps.

        Args:
            outputs: the student's outputs for a micro-batch.
            target: its labels.
            teachers: each teacher's outputs.
            weight: weight of the distillation term.
        """
        is_due = (self._step + 1) % SHARE_EVERY == 0 and self._share is None  # None: the first micro-batch
        if self._metrics and is_due and weight and len(teachers):
            objective, temperature = self._parts.objective, self._temperature
            self._share = distillation_share(objective, outputs, target, teachers, weight, temperature)

    def record_step(
        self,
        step: int,
        batch: Batch,
        loss: torch.Tensor,
        gradient_norm: torch.Tensor | None,
        peers: Codistillation,
        flush: bool,
    ) -> None:
        """Record one step; every few steps, collectively over the group, write a record of them.

        Only a record waits for a GPU, once.

        Args:
            step: the number of steps made.
            batch: this rank's batch.
            loss: this rank's loss, [].
            gradient_norm: norm of the group's gradient, [], if it is known.
            peers: the session, whose staleness, quarantine and traffic are recorded.
            flush: write the record now, because the next start of the run may continue from here; otherwise steps
                would be missing from the metrics or be in them twice.

        Raises:
            UserError: a loss since the last record was not finite.
        """
        self._bar.update()
        self._losses += loss.detach()
        self._step = step
        self._steps += 1
        self._throughput.count(batch)
        if step % RECORD_EVERY and not flush:
            return
        numbers = _numbers(loss=self._losses, gradient_norm=gradient_norm, distillation_share=self._share)
        mean = numbers.pop("loss") / self._steps
        if not math.isfinite(mean):
            raise UserError(
                f"group {self._groups.group}: the loss became {mean} in the {self._steps} steps up to step {step}; "
                "lower --optimizer.lr and go on from the last checkpoint with --resume"
            )
        moved = self._groups.sum(peers.traffic)
        values = {
            "loss": self._groups.sum(mean) / self._groups.size,
            "steps": self._steps,
            "learning_rate": self._parts.optimizer.param_groups[0]["lr"],
            **self._throughput.measure(),
            **{name: number for name, number in numbers.items() if math.isfinite(number)},
            "staleness": peers.staleness,
            "quarantine": dict(peers.quarantine),
            "part_seconds": {part: total / self._steps for part, total in self._seconds.items()},
            "bytes": {"published": moved.published, "fetched": moved.fetched, "discarded": moved.discarded},
        }
        self._record(step, values)
        self._losses.zero_()
        self._steps = 0
        self._share = None
        self._seconds.clear()

    def record_validation(self, step: int, loss: float) -> None:
        """Record a validation loss, in nats."""
        self._record(step, {"validation_loss": loss})
        self._throughput.restart()

    def validating(self, batches: int) -> Iterator[int]:
        """Yield the numbers of a validation's batches, with a progress bar in place of the training's."""
        with _bar(batches, "batch", self._shows, desc="validation") as bar:
            yield from bar

    def record_checkpoint(self, step: int, seconds: float) -> None:
        """Record the seconds for which training has waited for a checkpoint."""
        self._record(step, {"checkpoint_seconds": seconds})
        self._throughput.restart()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self._metrics:
            self._metrics.close()
        for tracker in self._trackers:
            tracker.close()

    def _record(self, step: int, values: Record) -> None:
        if self._metrics:
            self._metrics.record(step, values)
        for tracker in self._trackers:
            tracker.record(step, values)
        if "loss" in values:
            self._shown["loss"] = f"{values['loss']:.3f}"
            self._shown["staleness"] = max(values["staleness"].values(), default="-")
            self._shown[f"{self._parts.task.unit}s/s"] = f"{values['items_per_second']:,.0f}"
        if "validation_loss" in values:
            self._shown["validation"] = f"{values['validation_loss']:.3f}"
        self._bar.set_postfix(self._shown, refresh=False)


def _numbers(**tensors: torch.Tensor | None) -> dict[str, float]:
    """Return the values of those tensors, [], that are not None; copies them from a GPU together."""
    known = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    return dict(zip(known, torch.stack([tensor.float() for tensor in known.values()]).tolist(), strict=True))


def _bar(total: int, unit: str, shown: bool, **options: Any) -> Any:
    """Return a progress bar of `total` units that appears after a delay; `options` are those of tqdm."""
    # mpirun hands ranks a pipe and not the terminal, so a pipe alone does not mean a log; a batch job or CI does.
    logged = not sys.stderr.isatty() and any(name in os.environ for name in ("SLURM_JOB_ID", "CI"))
    interval = 30 if logged else 0.5
    usual = {
        "disable": not shown,
        "mininterval": interval,
        "delay": interval,
        "leave": logged,
        "position": 0,  # takes the place of the training's bar for a while
        "dynamic_ncols": True,
        "bar_format": "{l_bar}{bar}{r_bar}\n" if logged else None,  # srun passes on whole lines only
    }
    return tqdm(range(total), unit=unit, **(usual | options))
