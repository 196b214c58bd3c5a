"""Staleness, data and groups: effects of the exchange interval, of disjoint data, and of the number of groups."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

from matplotlib.figure import Figure

from study import ALONE, LANGUAGE, Run, Study, format_mean, markdown, prepare_text, steps_ratio

INTERVALS = (1, 10, 50, 100, 250, 1000)
GROUPS = (3, 4)
SEEDS = 1


def training(name: str, groups: int, seed: int, *options: str) -> Run:
    """Return the run of codistilling groups of one rank each."""
    options = (f"--groups={groups}", f"--seed={seed}", *LANGUAGE, *options)
    return Run(f"{name}-{seed}", "language", options, ranks=groups)


CASES: dict[str, Callable[[int], Run]] = {
    "one alone": lambda seed: training("alone", 1, seed, *ALONE),
    **{
        f"interval {n}": lambda seed, n=n: training(f"interval{n}", 2, seed, f"--codistill.exchange_interval={n}")  # type: ignore[misc]
        for n in INTERVALS
    },
    "the same data": lambda seed: training("same", 2, seed, "--data.partition=same"),
    **{f"{n} groups": lambda seed, n=n: training(f"groups{n}", n, seed) for n in GROUPS},  # type: ignore[misc]
}


def main() -> None:
    """Train all cases and write the results."""
    study = Study("exchange", __doc__)
    prepare_text()
    done = study.train(make(seed) for make in CASES.values() for seed in range(SEEDS))
    rows, figure = [], Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for color, (case, make) in enumerate(CASES.items()):
        of_seed = [done[make(seed).name] for seed in range(SEEDS)]
        losses = [fmean(group.best for group in groups) for groups in of_seed]
        ratios = []
        for seed, groups in enumerate(of_seed):
            (alone,) = done[f"alone-{seed}"]
            ratios.append(steps_ratio(groups, alone))
        rows.append((case, format_mean(losses), format_mean(ratios, 2)))
        axes.plot(*of_seed[0][0].column("validation_loss"), color=f"C{color}", label=case)
    axes.set(xlabel="step", ylabel="nats per byte", yscale="log")
    axes.legend(frameon=False, ncols=2)
    study.write_figure(figure)
    study.write_results(done, markdown(("case", "loss", "steps to the loss of one alone"), rows))


if __name__ == "__main__":
    main()
