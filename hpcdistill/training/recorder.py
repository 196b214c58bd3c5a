"""Records of a training: metrics for programs, a progress bar for people."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from hpcdistill.codistill.session import Codistillation
from hpcdistill.config.schema import Config
from hpcdistill.data.batches import Batch
from hpcdistill.distributed.groups import Groups
from hpcdistill.errors import UserError
from hpcdistill.exchange.traffic import TrafficStats
from hpcdistill.storage.metrics import Metrics, Record
from hpcdistill.storage.run_dir import RunDir
from hpcdistill.training.meters import Terms, measure_terms
from hpcdistill.training.noise import GradientNorms, NoiseScale
from hpcdistill.training.part_timer import part_timer, split_time
from hpcdistill.training.progress import Progress
from hpcdistill.training.setup import Parts
from hpcdistill.training.throughput import Throughput
from hpcdistill.training.trackers.opening import open_trackers

RECORD_EVERY = 10
"""Steps between two records; the loss is read only then, because reading it makes a GPU wait for its host."""

TERMS_EVERY = 100
"""Steps between two measurements of the terms of the loss, each of which costs a few percent of a step."""

NOISE_EVERY = 50
"""Steps between two measurements of the gradient noise, each of which costs about a tenth of a step."""


@dataclass
class _Sums:
    """Numbers of one rank that a group adds in one collective operation."""

    loss: float
    of_parts: float
    items: int
    traffic: TrafficStats

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(
            self.loss + other.loss,
            self.of_parts + other.of_parts,
            self.items + other.items,
            self.traffic + other.traffic,
        )


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
        self._terms: Terms | None = None
        self._was_taught = False  # in a step since the last record
        micro_batches = config.train.accumulate
        self._parts_per_step = groups.size * micro_batches
        self._norms = GradientNorms(parts.model, parts.optimizer, micro_batches)
        self._noise = NoiseScale(self._parts_per_step, config.data.batch_size / self._parts_per_step)
        self._progress = Progress()
        if self._metrics:
            for record in self._metrics.kept:
                self._noise.restore(record)
                self._progress.add(record)
            self._metrics.kept.clear()
        self._shown = {"loss": "-", "validation": "-", "staleness": "-", f"{parts.task.unit}s/s": "-"}
        self._timer = part_timer(groups.device)
        self._wait_began: Any = None
        groups.on_wait(self._note_wait)
        self._throughput = Throughput(config.train, groups, parts.task.objective, parts.model)

    def time(self, part: str) -> AbstractContextManager[None]:
        """Return a context whose time, on a GPU that of its work, is added to `part` of the next record."""
        return self._timer.time(part)

    @property
    def records_next(self) -> bool:
        """True if the next step ends the steps of a record."""
        return (self._step + 1) % RECORD_EVERY == 0

    @contextmanager
    def watch_gradients(self, weight: float) -> Iterator[None]:
        """Measure the backward passes of a step in the `with` block: waits for averages, and gradients when due.

        Gradients are due every `NOISE_EVERY` steps, in groups that have several micro-batches in a step.

        Args:
            weight: weight of the distillation term; only the gradient of the labels' loss alone is measured.
        """
        is_due = (self._step + 1) % NOISE_EVERY == 0 and self._parts_per_step > 1 and not weight
        with self._norms.watch() if is_due else nullcontext():
            yield
        if self._wait_began is not None:
            self._timer.add("averaging", self._wait_began, self._timer.mark())
            self._wait_began = None

    def _note_wait(self) -> None:
        self._wait_began = self._timer.mark()

    def measure_average(self) -> None:
        """Measure the average of the gradients, if they have been measured in this step."""
        if self._norms.of_parts is not None:
            self._norms.measure_average()

    def measure_terms(self, outputs: Any, target: torch.Tensor, teachers: Sequence[Any], weight: float) -> None:
        """Measure the terms of the loss, on the leader, every `TERMS_EVERY` steps in which teachers teach.

        Args:
            outputs: the student's outputs for a micro-batch.
            target: its labels.
            teachers: each teacher's outputs.
            weight: weight of the distillation term.
        """
        self._was_taught |= weight > 0
        is_due = (self._step + 1) % TERMS_EVERY == 0 and self._terms is None  # None: the first micro-batch
        if self._metrics and is_due and weight and teachers:
            objective, temperature = self._parts.objective, self._temperature
            self._terms = measure_terms(objective, outputs, target, teachers, weight, temperature)

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
        numbers = _numbers(
            loss=self._losses,
            gradient_norm=gradient_norm,
            distillation_share=self._terms and self._terms.share,
            cross_entropy=self._terms and self._terms.cross_entropy,
            of_parts=self._norms.of_parts,
            of_average=self._norms.of_average,
        )
        mean = numbers.pop("loss") / self._steps
        if not math.isfinite(mean):
            raise UserError(
                f"group {self._groups.group}: the loss became {mean} in the {self._steps} steps up to step {step}; "
                "lower --optimizer.lr and go on from the last checkpoint with --resume"
            )
        self._record(step, self._step_values(mean, numbers, peers))
        self._losses.zero_()
        self._steps = 0
        self._terms, self._was_taught = None, False
        self._norms.clear()

    def _step_values(self, loss: float, numbers: dict[str, float], peers: Codistillation) -> Record:
        """Return the values of a record of steps. Collective over the group, once.

        Args:
            loss: this rank's mean loss.
            numbers: other numbers of this rank, by name.
            peers: the session.
        """
        of_parts, of_average = (numbers.pop(name, None) for name in ("of_parts", "of_average"))
        sums = self._groups.sum(_Sums(loss, of_parts or 0.0, self._throughput.items, peers.traffic))
        loss, moved = sums.loss / self._groups.size, sums.traffic
        if not self._was_taught:
            numbers["cross_entropy"] = loss
        seconds = self._throughput.seconds
        parts = split_time(seconds, self._timer.read())
        return {
            "loss": loss,
            "steps": self._steps,
            "learning_rate": self._parts.optimizer.param_groups[0]["lr"],
            **self._throughput.measure(sums.items),
            **{name: number for name, number in numbers.items() if math.isfinite(number)},
            **({} if of_average is None else self._noise.add(sums.of_parts / self._groups.size, of_average)),
            "staleness": peers.staleness,
            "quarantine": dict(peers.quarantine),
            "part_seconds": {part: total / self._steps for part, total in parts.items()},
            "bytes": {"published": moved.published, "fetched": moved.fetched, "discarded": moved.discarded},
        }

    def record_validation(self, step: int, loss: float, ensemble: Record) -> None:
        """Record a validation.

        Args:
            step: number of steps made.
            loss: validation loss, in nats.
            ensemble: metrics of the groups' ensemble.
        """
        per_pass = self._parts.batches.per_pass
        values = {"validation_loss": loss, **ensemble, **self._progress.metrics(step, loss)}
        if per_pass:
            values["passes"] = step / per_pass
        self._record(step, values)
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
        self._progress.add({"step": step, **values})
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
    return dict(zip(known, torch.stack([tensor.double() for tensor in known.values()]).tolist(), strict=True))


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
