"""Command `trainer`: training of groups on one GPU, its synchronizations, and its losses beside those of a CPU.

One GPU cannot show NCCL between ranks: NCCL refuses two ranks of a group on one GPU, and so does the trainer.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from gpu_check.environment import Environment
from gpu_check.folder import Packed
from gpu_check.report import Report
from gpu_check.steps import Command, NotRunError, Steps
from gpu_check.truth import set_up

CURVE_BAR = 0.02
"""Largest difference between validation losses on the GPU and on the CPU, in nats."""

SMALL = ("--model.hidden=32", "--train.validation_items=16")
"""Keys of runs whose result does not matter."""


def run(steps: Steps, environment: Environment, packed: Packed) -> None:
    """Run the steps of this command."""
    trainer = Trainer(steps, environment, packed)
    set_up(steps, environment)
    steps.run("two groups", trainer.two_groups, limit=120, least=30, needs=("packages",))
    steps.run("synchronizations", trainer.synchronizations, limit=90, least=30, needs=("packages",))
    steps.run("one group", trainer.one_group, limit=60, least=20, needs=("packages",))
    steps.run("curve", trainer.curve, limit=90, least=30, needs=("packages",))
    steps.run("Horovod", partial(environment.finish_horovod, steps), limit=240, least=5, needs=("packages",))


class Trainer:
    """Runs of `hpcdistill train` on the carried text."""

    def __init__(self, steps: Steps, environment: Environment, packed: Packed) -> None:
        self._steps, self._environment, self._packed = steps, environment, packed
        self._runs = environment.project / "runs"

    def two_groups(self, report: Report, seconds: float) -> None:
        """Train two groups of one rank, which exchange, teach, and share the GPU; count the contexts of each."""
        shutil.rmtree(self._runs, ignore_errors=True)
        length = 20 if self._environment.is_dry else 300
        with contexts_of_processes(report, self._environment.is_dry):
            status, output = self._train(
                seconds,
                2,
                "two",
                *("--groups=2", "--gradients=torch", f"--train.steps={length}", *SMALL),
                *(f"--codistill.burn_in={length // 4}", f"--codistill.exchange_interval={length // 20}"),
                f"--train.validate_every={length // 2}",
            )
        report.bar(
            "two groups on one GPU", f"status {status}: {output[-200:]}" if status else "trained", "trained", not status
        )
        for group in range(2):
            header, *records = self._metrics("two", group)
            last = [record for record in records if "bytes" in record][-1]
            fetched = sum(last["bytes"]["fetched"].values())
            report.row(
                "groups",
                group=group,
                device=header["device"],
                validation=[round(record["validation_loss"], 3) for record in records if "validation_loss" in record],
                staleness=last["staleness"],
                quarantine=last.get("quarantine"),
                fetched=fetched,
            )
            report.bar(f"group {group} has fetched from its peer", fetched, "> 0", fetched > 0)

    def synchronizations(self, report: Report, seconds: float) -> None:
        """Count the synchronizations of an ordinary step."""
        if self._environment.is_dry:
            raise NotRunError("it needs a GPU")
        keys = ["--groups=1", "--codistill.weight=0", "--gradients=torch", "--train.validate_every=1000", *SMALL]
        command = self._environment.probe("syncs", "30", "60", "--train", json.dumps(self._arguments("syncs", *keys)))
        self._steps.probe(report, command, seconds, self._environment.variables)

    def one_group(self, report: Report, seconds: float) -> None:
        """Start two ranks of one group, which one GPU cannot hold: they are to be refused, with a reason."""
        status, output = self._train(
            seconds, 2, "one", "--groups=1", "--codistill.weight=0", "--gradients=torch", "--train.steps=4", *SMALL
        )
        if self._environment.is_dry:
            report.bar("two ranks of one group on CPUs", f"status {status}", "status 0", not status)
            return
        reason = next((line for line in output.splitlines() if "GPU" in line), output[-300:])
        report.bar(
            "two ranks of one group on one GPU are refused",
            f"status {status}: {reason}",
            "status 2, and why",
            status == 2 and "GPU" in reason,
        )

    def curve(self, report: Report, seconds: float) -> None:
        """Compare the validation losses of one model with those on a CPU."""
        if not self._packed.curve.exists():
            raise NotRunError("no curve of a CPU is carried")
        curve = json.loads(self._packed.curve.read_text())
        for precision in ("bf16",) if self._environment.is_dry else ("float32", "bf16"):
            name = f"curve-{precision}"
            status, output = self._train(
                seconds / 2, 1, name, "--gradients=torch", *curve["keys"], f"--train.precision={precision}"
            )
            if status:
                raise RuntimeError(f"training in {precision} ended with status {status}: {output[-300:]}")
            here = validation_losses(self._metrics(name, 0))
            for step, there in curve["validation_losses"].items():
                report.row("validation losses", precision=precision, step=step, CPU=there, here=here.get(step))
            pairs = [(there, here.get(step, float("nan"))) for step, there in curve["validation_losses"].items()]
            worst = max(abs(there - loss) for there, loss in pairs)
            report.at_most(f"{precision}: difference to the CPU's float32, in nats", worst, CURVE_BAR)

    def _train(self, seconds: float, ranks: int, name: str, *keys: str) -> tuple[int, str]:
        """Run `hpcdistill train` on some ranks; return its exit status and output."""
        environment = self._environment
        launcher = shutil.which("mpirun", path=environment.variables["PATH"])
        if launcher is None:
            raise NotRunError("there is no mpirun")
        train: Command = [environment.python, "-m", "hpcdistill", "train", *self._arguments(name, *keys)]
        return self._steps.output_of(
            [launcher, "-n", str(ranks), *train], seconds, environment.variables, environment.project
        )

    def _arguments(self, name: str, *keys: str) -> list[str]:
        config = self._environment.project / "configs" / "demo.toml"
        return [str(config), f"--data.path={self._packed.store}", f"--run_dir={self._runs / name}", *keys]

    def _metrics(self, name: str, group: int) -> list[dict[str, Any]]:
        return read_metrics(self._runs / name, group)


def read_metrics(run_dir: Path, group: int) -> list[dict[str, Any]]:
    """Return the header and the records of a group's metrics."""
    return [json.loads(line) for line in (run_dir / f"metrics-g{group}.jsonl").read_text().splitlines()]


def validation_losses(metrics: list[dict[str, Any]]) -> dict[str, float]:
    """Return the validation losses by step; the steps are strings, as in JSON."""
    return {str(record["step"]): record["validation_loss"] for record in metrics if "validation_loss" in record}


@contextmanager
def contexts_of_processes(report: Report, is_dry: bool) -> Iterator[None]:
    """Ask nvidia-smi, while the block runs, how many contexts each process has and how much memory they take."""
    most: Counter[str] = Counter()
    memory: Counter[str] = Counter()
    has_ended = threading.Event()
    query = ["nvidia-smi", "--query-compute-apps=pid,gpu_uuid,used_memory", "--format=csv,noheader,nounits"]

    def watch() -> None:
        while not has_ended.wait(1):
            answer = subprocess.run(query, capture_output=True, text=True, check=False).stdout
            lines = [line.split(", ") for line in answer.splitlines() if line.count(", ") == 2]
            for pid, number in Counter(pid for pid, _, _ in lines).items():
                most[pid] = max(most[pid], number)
            for pid, _, megabytes in lines:
                memory[pid] = max(memory[pid], int(megabytes) if megabytes.isdigit() else 0)

    thread = threading.Thread(target=watch, daemon=True)
    if not is_dry and shutil.which("nvidia-smi"):
        thread.start()
    try:
        yield
    finally:
        has_ended.set()
        if thread.is_alive():
            thread.join()
        if most:
            report.fact("memory of each process in MiB", dict(memory))
            report.at_most("contexts of a process", max(most.values()), 1)
        else:
            report.fact("contexts of a process", "not seen: nvidia-smi lists no processes here")
