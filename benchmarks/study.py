"""Parts that the studies share: runs that are trained once and then read; results as tables, JSON and figures."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from hpcdistill.storage.json_text import to_json
from hpcdistill.storage.metrics import GroupMetrics, read_run
from hpcdistill.storage.run_dir import RunDir
from measure import machine, make_parser
from train_many import FINISHED

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs"
RESULTS = ROOT / "benchmarks" / "results" / "studies"
FIGURES = ROOT / "docs" / "figures"

TEXT = RUNS / "data" / "stdlib.h5"
CLICKS = RUNS / "data" / "clicks.h5"
CLICK_ROWS = 1_000_000

SCALES: dict[str, dict[str, list[str]]] = {
    "cpu": {"language": [], "clicks": []},
    "gpu": {
        "language": ["--model.hidden=1024", "--model.projection=256", "--data.sequence_length=128"],
        "clicks": ["--model.widths=2560,1024,256", "--data.batch_size=4096"],
    },
}
"""Options beyond those of configs/*.toml, by workload."""

T95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}
"""Student's t for a two-sided 95 % interval, by number of samples less one."""

ALONE = ("--groups=1", "--codistill.weight=0")
"""Options of plain synchronous SGD."""

LANGUAGE_STEPS, LANGUAGE_BURN_IN = 1500, 150
LANGUAGE = (f"--train.steps={LANGUAGE_STEPS}", f"--codistill.burn_in={LANGUAGE_BURN_IN}", "--codistill.weight=1")
"""Options that the studies of the paper's claims on the language model share."""

Runs = dict[str, list[GroupMetrics]]
"""Metrics of the groups of each run, by its name."""


@dataclass(frozen=True)
class Run:
    """One training."""

    name: str
    workload: str
    """Name of its configuration in configs/."""
    options: tuple[str, ...] = ()
    ranks: int = 1


class Study:
    """A study: its trainings and their results.

    Args:
        name: name of the study and of its files.
        description: for `--help`.
        add_options: adds the study's own options to a parser.

    Attributes:
        options: values of all options.
    """

    def __init__(
        self,
        name: str,
        description: str | None,
        add_options: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
    ) -> None:
        parser = make_parser(description)
        parser.add_argument("--scale", choices=SCALES, default="cpu", help="size of models and batches")
        add_options(parser)
        self.name = name
        self.options = parser.parse_args()
        self.scale: str = self.options.scale
        self._cores = len(os.sched_getaffinity(0))  # limit of ranks of all trainings that run at the same time

    def train(self, runs: Iterable[Run], together: int = 1) -> Runs:
        """Train each run that has not been trained before; return the metrics of all.

        Args:
            runs: the runs.
            together: number of runs that one job trains, one after another; more than 1 needs one rank in each group.
        """
        runs = list({run.name: run for run in runs}.values())
        jobs = _jobs([run for run in runs if not self._is_trained(run)], together)
        free, changed = self._cores, threading.Condition()
        bar = tqdm(total=len(runs), desc=self.name, unit="run", initial=len(runs) - sum(map(len, jobs)))

        def train_when_free(job: list[Run]) -> None:
            nonlocal free
            ranks = job[0].ranks
            with changed:
                changed.wait_for(lambda: free >= min(ranks, self._cores))
                free -= ranks
            try:
                self._train(job)
            finally:
                with changed:
                    free += ranks
                    changed.notify_all()
            bar.update(len(job))

        with ThreadPoolExecutor(self._cores) as pool:
            list(pool.map(train_when_free, jobs))
        bar.close()
        return {run.name: self.metrics(run.name) for run in runs}

    def metrics(self, run: str) -> list[GroupMetrics]:
        """Return the metrics of each group of a run."""
        return read_run(self.folder(run))

    def folder(self, run: str) -> Path:
        """Return the folder of a run."""
        return RUNS / "studies" / f"{self.name}-{self.scale}" / run

    def _is_trained(self, run: Run) -> bool:
        folder = self.folder(run.name)
        return RunDir(folder).report.exists() or (folder / FINISHED).exists()  # the last file that is written

    def _train(self, job: list[Run]) -> None:
        """Train the runs of a job, one after another."""
        arguments = [
            [
                *(f"configs/{run.workload}.toml", "--resume", f"--run_dir={self.folder(run.name)}"),
                *(*SCALES[self.scale].get(run.workload, []), *run.options),
            ]
            for run in job
        ]
        folder = self.folder(job[0].name)
        folder.mkdir(parents=True, exist_ok=True)
        program = ["-m", "hpcdistill", "train", *arguments[0]]
        if len(job) > 1:
            (folder / "jobs.json").write_text(json.dumps(arguments))
            program = ["benchmarks/train_many.py", str(folder / "jobs.json")]
        command = ["mpirun", "-np", str(job[0].ranks), sys.executable, *program]
        with (folder / "log").open("w") as log:
            threads = {"OMP_NUM_THREADS": "1"}  # a core for each rank, as `train` counts them
            done = subprocess.run(command, cwd=ROOT, env=os.environ | threads, stdout=log, stderr=subprocess.STDOUT)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\nfailed; see {folder}/log")

    def write_results(self, runs: Runs, table: str, part: str = "", **facts: Any) -> None:
        """Print the table; write the facts and all validation curves as JSON, in a file for each `part` of a study."""
        print(table)
        content = {
            "command": shlex.join(["python", f"benchmarks/study_{self.name}.py", *sys.argv[1:]]),
            "machine": machine(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
            **facts,
            "runs": {name: [curve(group) for group in groups] for name, groups in runs.items()},
        }
        RESULTS.mkdir(parents=True, exist_ok=True)
        path = RESULTS / f"{self._stem(part)}.json"
        path.write_text(to_json(content).replace('"runs"', '\n"runs"').replace('], "', '],\n"') + "\n")
        print(f"\n{path}")

    def write_figure(self, figure: Figure, part: str = "") -> None:
        """Write the figure of the study, or of a `part` of it."""
        FIGURES.mkdir(parents=True, exist_ok=True)
        figure.savefig(FIGURES / f"study-{self._stem(part)}.svg", metadata={"Date": None})

    def _stem(self, part: str) -> str:
        return f"{self.name}-{f'{part}-' if part else ''}{self.scale}"


def _jobs(runs: Sequence[Run], together: int) -> list[list[Run]]:
    """Return runs of equally many ranks, up to `together` a job; those of the fewest ranks first."""
    jobs: list[list[Run]] = []
    for run in sorted(runs, key=lambda each: each.ranks):
        if not jobs or len(jobs[-1]) == together or jobs[-1][0].ranks != run.ranks:
            jobs.append([])
        jobs[-1].append(run)
    return jobs


def curve(group: GroupMetrics) -> dict[str, Any]:
    """Return a group's validation losses by step, as JSON values."""
    steps, losses = group.column("validation_loss")
    return {"steps": steps, "validation_loss": [round(loss, 5) for loss in losses]}


def steps_to(group: GroupMetrics, target: float) -> float:
    """Return the steps to the validation loss `target`, interpolated linearly; all steps if it was not reached."""
    steps = reached(*group.column("validation_loss"), target)
    return float(group.records[-1]["step"]) if steps is None else steps


def reached(steps: Sequence[int], losses: Sequence[float], target: float) -> float | None:
    """Return the step at which a curve first had the loss `target`, interpolated linearly; None if it never did."""
    before: tuple[int, float] | None = None
    for step, loss in zip(steps, losses, strict=True):
        if loss <= target:
            if before is None or before[1] == loss:
                return float(step)
            return float(before[0] + (step - before[0]) * (before[1] - target) / (before[1] - loss))
        before = (step, loss)
    return None


def steps_ratio(groups: Sequence[GroupMetrics], one: GroupMetrics) -> float:
    """Return the mean over `groups` of the steps to the lowest loss of `one`, divided by the steps of `one`."""
    return fmean(steps_to(group, one.best) for group in groups) / steps_to(one, one.best)


def add_seeds(parser: argparse.ArgumentParser) -> None:
    """Add the option `--seeds`, a number of seeds that has an interval."""
    parser.add_argument(
        "--seeds",
        type=int,
        choices=range(min(T95) + 1, max(T95) + 2),
        default=5,
        metavar="N",
        help="trainings of each arm or case, after any tuning: 2 to 10 (default: 5)",
    )


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean of two to ten values and the half-width of its 95 % interval by Student's t."""
    return fmean(values), T95[len(values) - 1] * stdev(values) / len(values) ** 0.5


def format_mean(values: Sequence[float], digits: int = 3) -> str:
    """Format the mean and, of two values or more, the half-width of its 95 % interval by Student's t."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    mean, half = interval(values)
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def markdown(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table in Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def prepare_text() -> None:
    """Prepare the data of the language model: the source of Python's standard library, as in the demo."""
    stdlib = sysconfig.get_path("stdlib")
    options = ["--include", "*.py", "--exclude", "site-packages", "dist-packages", "__pycache__"]
    prepare(TEXT, "text", "--input", stdlib, *options)


def prepare_clicks() -> None:
    """Prepare the data of the click model: synthetic, so that the lowest possible loss is known."""
    prepare(CLICKS, "clicks", "--synthetic", "--rows", str(CLICK_ROWS))


def prepare(output: Path, *arguments: str) -> None:
    """Run `hpcdistill prepare` with `arguments` unless the store `output` exists."""
    if not output.exists():
        command = [sys.executable, "-m", "hpcdistill", "prepare", *arguments, "--output", str(output)]
        subprocess.run(command, cwd=ROOT, check=True)
