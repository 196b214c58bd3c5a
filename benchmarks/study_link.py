"""Slow link between two nodes: time to a loss of one group across both, of one group on each, and of one on one node.

Two virtual nodes of this machine have one rank each, and a link of limited rate (`tools/two_nodes.sh`; Linux, root).
Loss by step does not depend on the link: the curves are trained once for each seed, without it. The times of steps are
measured over each link in short trainings, in turns, and the median of the repetitions counts. Time to a loss is the
number of steps to it, times the seconds of a step before and after the burn-in. One whole training of each kind over
one link checks this. The target is the lowest loss of one group on one node.

Times need a machine that does nothing else. --measure measures them again, and keeps the curves.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from matplotlib.figure import Figure

from hpcdistill.storage.metrics import GroupMetrics, read_run
from hpcdistill.storage.run_dir import RunDir
from study import ALONE, ROOT, TEXT, Run, Runs, Study, format_mean, markdown, prepare_text, steps_to

STEPS = 800
BURN_IN = 200
BATCH = 16
WEIGHT = 0.3
SEEDS = range(5)
MODEL = ("--model.hidden=128", "--train.average=0.99", f"--data.path={TEXT}")
LINKS = {"unlimited": None, "1 Gbit/s": "1gbit", "100 Mbit/s": "100mbit", "20 Mbit/s": "20mbit"}
"""Rate of each link, as tc writes it."""
CHECKED = "100 Mbit/s"
"""Link of the whole trainings."""
REPETITIONS = 3
WARM_UP = 20
"""First steps of a measurement, which do not count."""


@dataclass(frozen=True)
class Arm:
    """Use of two nodes."""

    name: str
    groups: int
    batch: int
    ranks: int
    timed_steps: int
    """Steps of a measurement."""

    @property
    def options(self) -> tuple[str, ...]:
        """Options of `hpcdistill train`."""
        return (
            *(*MODEL, f"--groups={self.groups}", f"--data.batch_size={self.batch}"),
            *((f"--codistill.weight={WEIGHT}",) if self.groups > 1 else ALONE),
        )


ONE_NODE = Arm("one group on one node", 1, BATCH, 1, 120)
ACROSS = Arm("one group across both", 1, 2 * BATCH, 2, 60)
EACH = Arm("one group on each", 2, BATCH, 2, 300)
ARMS = (ONE_NODE, ACROSS, EACH)
TIMED_BURN_IN = 100
"""Burn-in of a measurement with teachers, in steps."""


@dataclass(frozen=True)
class Times:
    """Seconds of a step of an arm over a link."""

    burn_in: float
    later: float
    averaging: float | None
    """Seconds in which a step of the burn-in waits for the average of the gradients."""

    def to(self, steps: float, burn_in: int) -> float:
        """Return the seconds of the first `steps` steps, of which `burn_in` come before distillation."""
        return min(steps, burn_in) * self.burn_in + max(0.0, steps - burn_in) * self.later


def curve_run(arm: Arm, seed: int) -> Run:
    """Return the training of a loss curve; the batch of one group is the same on one rank or two."""
    options = (*arm.options, f"--seed={seed}", f"--train.steps={STEPS}", f"--codistill.burn_in={BURN_IN}")
    return Run(f"{arm.batch}x{arm.groups}-{seed}", "language", (*options, "--train.validate_every=50"), arm.groups)


def train_between_nodes(study: Study, arm: Arm, link: str, name: str, *options: str) -> list[GroupMetrics]:
    """Train an arm over a link, unless that has been done; return the metrics of its groups."""
    folder = study.folder(name)
    if not RunDir(folder).report.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        limit = ["--rate", LINKS[link]] if LINKS[link] else []
        start = ["mpirun", "-n", "1"] if arm.ranks == 1 else ["tools/two_nodes.sh", *limit, "-n", str(arm.ranks)]
        command = [*start, sys.executable, "-m", "hpcdistill", "train", "configs/language.toml", f"--run_dir={folder}"]
        with (folder / "log").open("w") as log:
            done = subprocess.run(
                [str(part) for part in (*command, *arm.options, *options)],
                cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        if done.returncode:
            raise SystemExit(f"training over a link of {link} failed; see {folder}/log")
    return read_run(folder)


def part_seconds(groups: Sequence[GroupMetrics], first: int, last: int, part: str | None = None) -> float:
    """Return the seconds of a step, or of a part of it: the mean over the steps after `first`, to `last`, and groups.

    A step's parts add up to its wall time.
    """
    found: list[tuple[float, int]] = [
        (record["part_seconds"][part] if part else sum(record["part_seconds"].values()), record["steps"])
        for group in groups
        for record in group.records
        if "part_seconds" in record and first < record["step"] <= last
    ]
    return sum(seconds * steps for seconds, steps in found) / sum(steps for _, steps in found)


def times_of(arm: Arm, groups: Sequence[GroupMetrics]) -> Times:
    """Return the times of a measurement; without teachers, all steps take as long as those of the burn-in."""
    end = timed_burn_in(arm)
    burn_in = part_seconds(groups, WARM_UP, end)
    later = part_seconds(groups, end + WARM_UP, arm.timed_steps) if arm.groups > 1 else burn_in
    averaging = part_seconds(groups, WARM_UP, end, "averaging") if arm.groups < arm.ranks else None
    return Times(burn_in, later, averaging)


def timed_burn_in(arm: Arm) -> int:
    """Return the burn-in of a measurement, in steps."""
    return TIMED_BURN_IN if arm.groups > 1 else arm.timed_steps


def measure(study: Study, arm: Arm, link: str, repetition: int) -> Times:
    """Measure the times of an arm's steps over a link."""
    steps = arm.timed_steps
    groups = train_between_nodes(
        study,
        arm,
        link,
        f"times/{arm.name}-{link}-{repetition}".replace(" ", "_").replace("/s", ""),
        *(f"--train.steps={steps}", f"--train.validate_every={steps}", "--train.validation_items=64"),
        *(f"--codistill.burn_in={timed_burn_in(arm)}", f"--checkpoint.interval={steps}"),
    )
    return times_of(arm, groups)


def measure_all(study: Study) -> dict[tuple[Arm, str], list[Times]]:
    """Measure all arms over all links in turns; one group on one node needs no link."""
    cases = [(arm, link) for link in LINKS for arm in ARMS if arm.ranks > 1 or link == "unlimited"]
    found: dict[tuple[Arm, str], list[Times]] = {case: [] for case in cases}
    for repetition in range(REPETITIONS):
        for arm, link in cases:
            found[arm, link].append(measure(study, arm, link, repetition))
    return found


def medians(found: Sequence[Times]) -> Times:
    """Return the median of each time."""
    averaging = [times.averaging for times in found if times.averaging is not None]
    return Times(
        median(times.burn_in for times in found),
        median(times.later for times in found),
        median(averaging) if averaging else None,
    )


def steps_of(done: Runs, arm: Arm, seed: int) -> float:
    """Return an arm's steps to the lowest loss of one group on one node with this seed; all steps if not reached."""
    (one,) = done[curve_run(ONE_NODE, seed).name]
    return fmean(steps_to(group, one.best) for group in done[curve_run(arm, seed).name])


def check(study: Study, done: Runs, times: dict[tuple[Arm, str], Times]) -> list[dict[str, Any]]:
    """Compare whole trainings over one link with the product of steps and seconds."""
    found = []
    for arm in (ACROSS, EACH):
        run = curve_run(arm, 0)
        groups = train_between_nodes(study, arm, CHECKED, f"times/whole-{arm.batch}", *run.options)
        target = read_run(study.folder(curve_run(ONE_NODE, 0).name))[0].best
        reached = fmean(steps_to(group, target) for group in groups)
        measured = fmean(
            sum(
                sum(record["part_seconds"].values()) * record["steps"]
                for record in group.records
                if "part_seconds" in record and record["step"] <= reached
            )
            for group in groups
        )
        product = times[arm, CHECKED].to(steps_of(done, arm, 0), BURN_IN)
        found.append({"arm": arm.name, "link": CHECKED, "seconds": measured, "steps_times_seconds": product})
    return found


def draw(done: Runs, times: dict[tuple[Arm, str], Times]) -> Figure:
    """Draw the loss of the first seed by time, a field for each link."""
    figure = Figure(figsize=(12, 3.5), layout="constrained")
    for axes, link in zip(figure.subplots(1, len(LINKS), sharey=True), LINKS, strict=True):
        for arm in ARMS:
            steps, losses = done[curve_run(arm, 0).name][0].column("validation_loss")
            taken = times[arm, link if arm.ranks > 1 else "unlimited"]
            axes.plot([taken.to(step, BURN_IN) for step in steps], losses, label=arm.name)
        axes.set(title=link, xlabel="seconds", xscale="log")
    axes.legend(frameon=False)
    figure.axes[0].set(ylabel="validation loss, nats per byte")
    return figure


def rows(done: Runs, times: dict[tuple[Arm, str], Times]) -> list[tuple[object, ...]]:
    """Return the lines of the table."""
    lines: list[tuple[object, ...]] = []
    for (arm, link), taken in times.items():
        later = f"{1e3 * taken.later:.1f}" if arm is EACH else "-"
        averaging = "-" if taken.averaging is None else f"{1e3 * taken.averaging:.1f}"
        steps = [steps_of(done, arm, seed) for seed in SEEDS]
        seconds = [taken.to(count, BURN_IN) for count in steps]
        cells = (f"{1e3 * taken.burn_in:.1f}", averaging, later, format_mean(steps, 0), format_mean(seconds, 1))
        lines.append((link if arm.ranks > 1 else "none", arm.name, *cells))
    return lines


def main() -> None:
    """Train the curves, measure the times, and write the results."""

    def add_options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--measure", action="store_true", help="measure all times again")

    study = Study("link", __doc__, add_options)
    prepare_text()
    done = study.train([curve_run(arm, seed) for arm in ARMS for seed in SEEDS], together=len(SEEDS))
    if study.options.measure:
        shutil.rmtree(study.folder("times"), ignore_errors=True)
    all_times = measure_all(study)
    times = {case: medians(found) for case, found in all_times.items()}
    study.write_figure(draw(done, times))
    titles = ("link", "arm", "ms per step", "averaging", "ms per step with teachers", "steps", "seconds to the loss")
    study.write_results(
        done,
        markdown(titles, rows(done, times)),
        load=os.getloadavg(),
        times=[
            {"arm": arm.name, "link": link, "measured": [vars(each) for each in found]}
            for (arm, link), found in all_times.items()
        ],
        checks=check(study, done, times),
    )


if __name__ == "__main__":
    main()
