"""Weight of the distillation term, with and without division of the loss by 1 + weight: language and images.

Two groups codistil; all else is as in configs/. At weight 0 they train apart. The rate decays by a cosine. Losses are
means over both groups; differences from weight 0 are paired by seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import product
from statistics import fmean

from matplotlib.figure import Figure

from study import TEXT, Run, Runs, Study, add_seeds, format_mean, interval, markdown, prepare_text
from study_little_data import add_images, prepare_subset

WEIGHTS = (0.05, 0.1, 0.3, 1.0)
TASKS: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "language": ("language", 800, (f"--data.path={TEXT}", "--optimizer.decay=cosine")),
    "images": (
        "images",
        600,
        (
            *("--model.layers=18", "--model.width=8", "--data.batch_size=64", "--data.partition=same"),
            *("--optimizer.lr=0.3", "--optimizer.weight_decay=5e-3", "--optimizer.warmup=20"),
        ),
    ),
}
"""Configuration, steps and options of each task."""
IMAGES = 2500
TITLES = ("task", "weight", "divided by 1 + weight", "validation loss", "less that of weight 0")

Case = tuple[float, bool]
"""Weight, and True if the loss is divided by 1 + weight."""
CASES: list[Case] = [(0.0, False), *product(WEIGHTS, (False, True))]


def training(task: str, case: Case, seed: int, *options: str) -> Run:
    """Return the training of two groups."""
    workload, steps, common = TASKS[task]
    weight, is_divided = case
    name = f"{task}/{weight:g}{'-divided' if is_divided else ''}-{seed}"
    return Run(
        name,
        workload,
        (
            *(*common, *options, f"--seed={seed}", f"--train.steps={steps}", f"--train.validate_every={steps // 8}"),
            *(f"--codistill.weight={weight:g}", f"--codistill.normalize={is_divided}"),
            *(f"--codistill.burn_in={steps // 4}", f"--codistill.exchange_interval={max(1, steps // 100)}"),
            f"--checkpoint.interval={steps}",
        ),
        ranks=2,
    )


def losses(runs: Runs, task: str, case: Case, seeds: range) -> list[float]:
    """Return the lowest validation loss of each seed, the mean over its groups."""
    return [fmean(group.best for group in runs[training(task, case, seed).name]) for seed in seeds]


def rows(found: dict[str, dict[Case, list[float]]]) -> Iterator[tuple[object, ...]]:
    """Yield the rows of the table."""
    for task, by_case in found.items():
        for (weight, is_divided), values in by_case.items():
            less = [one - apart for one, apart in zip(values, by_case[0.0, False], strict=True)]
            divided = "-" if not weight else "yes" if is_divided else "no"
            yield task, f"{weight:g}", divided, format_mean(values), format_mean(less) if weight else "-"


def agreed_best(by_case: dict[Case, list[float]]) -> Case | None:
    """Return the case with the lowest loss on every seed; None if the seeds disagree."""
    best = {min(by_case, key=lambda case: by_case[case][number]) for number in range(len(by_case[0.0, False]))}
    return best.pop() if len(best) == 1 else None


def draw(found: dict[str, dict[Case, list[float]]]) -> Figure:
    """Draw the difference from weight 0 by weight."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, (task, by_case) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        for is_divided, style in ((False, "o-"), (True, "s--")):
            pairs = [
                interval(
                    [one - apart for one, apart in zip(by_case[weight, is_divided], by_case[0.0, False], strict=True)]
                )
                for weight in WEIGHTS
            ]
            label = "divided by 1 + weight" if is_divided else "not divided"
            means, halves = zip(*pairs, strict=True)
            axes.errorbar(WEIGHTS, means, yerr=halves, fmt=style, capsize=3, label=label)
        axes.axhline(0, color="#999", linewidth=1)
        axes.set(title=task, xscale="log", xlabel="weight", ylabel="validation loss less that of weight 0")
        axes.legend(frameon=False)
    return figure


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the study's options."""
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["language"], help="default: language")
    add_seeds(parser)
    add_images(parser)


def main() -> None:
    """Train all cases and write the results."""
    study = Study("weight", __doc__, add_options)
    options, seeds = study.options, range(study.options.seeds)
    data: dict[str, tuple[str, ...]] = dict.fromkeys(options.tasks, ())
    if "language" in data:
        prepare_text()
    if "images" in data:
        data["images"] = (f"--data.path={prepare_subset(options.images, IMAGES)}",)
    done = study.train(
        (training(task, case, seed, *data[task]) for task in data for seed in seeds for case in CASES), len(CASES)
    )
    found = {task: {case: losses(done, task, case, seeds) for case in CASES} for task in data}
    study.write_figure(draw(found))
    facts = {
        task: [{"weight": w, "divided": d, "losses": each} for (w, d), each in by.items()] for task, by in found.items()
    }
    study.write_results(done, markdown(TITLES, rows(found)), found=facts)
    for task, by_case in found.items():
        best = agreed_best(by_case)
        print(f"{task}: " + (f"all seeds agree on {best}" if best else "the seeds disagree on the best case"))


if __name__ == "__main__":
    main()
