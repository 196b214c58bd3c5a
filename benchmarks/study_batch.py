"""Steps to a loss: where doubling the synchronous batch stops helping, and the effect of two-way codistillation there.

At each batch size B: one model with B, one with 2B, and two codistilling models with B each on disjoint data. The last
two cost the same. The target is the lowest loss of the model with B.
"""

from __future__ import annotations

from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study import ALONE, LANGUAGE, Run, Runs, Study, format_mean, markdown, prepare_text, steps_ratio

BATCHES = (8, 32, 128)
SEEDS = {8: 1, 32: 5, 128: 1}
SCHEDULES = ("none", "cosine")
TITLES = ("decay", "B", "loss, one with B", "one with 2B", "two with B", "steps, one with 2B", "steps, two with B")


def training(models: int, batch: int, decay: str, seed: int) -> Run:
    """Return the run of one model, or of two that codistil."""
    options = (f"--data.batch_size={batch}", f"--optimizer.decay={decay}", f"--seed={seed}", *LANGUAGE)
    name = f"{models}x{batch}-{decay}-{seed}"
    return Run(name, "language", (*options, *(ALONE if models == 1 else ())), ranks=models)


def row(done: Runs, batch: int, decay: str) -> tuple[str, ...]:
    """Return the cells of one batch size: losses and ratios of steps."""
    losses: list[list[float]] = [[], [], []]
    steps: list[list[float]] = [[], []]
    for seed in range(SEEDS[batch]):
        (one,) = done[training(1, batch, decay, seed).name]
        losses[0].append(one.best)
        for i, (models, size) in enumerate([(1, 2 * batch), (2, batch)]):
            groups = done[training(models, size, decay, seed).name]
            losses[i + 1].append(fmean(group.best for group in groups))
            steps[i].append(steps_ratio(groups, one))
    return (*map(format_mean, losses), *(format_mean(ratios, 2) for ratios in steps))


def draw(axes: Axes, done: Runs, decay: str) -> None:
    """Draw the curves of each case's first seed."""
    for color, batch in enumerate(BATCHES):
        for models, size, style in ((1, batch, ":"), (1, 2 * batch, "--"), (2, batch, "-")):
            group = done[training(models, size, decay, 0).name][0]
            steps, losses = group.column("validation_loss")
            axes.plot(steps, losses, style, color=f"C{color}", label=f"{models} × {size}")
    axes.set(title=f"decay of the learning rate: {decay}", xlabel="step", yscale="log")
    axes.legend(frameon=False)


def main() -> None:
    """Train all cases and write the results."""
    study = Study("batch", __doc__)
    prepare_text()
    cases = [(batch, decay, seed) for batch in BATCHES for decay in SCHEDULES for seed in range(SEEDS[batch])]
    kinds = [(1, 1), (1, 2), (2, 1)]
    done = study.train(
        training(models, batch * factor, decay, seed) for batch, decay, seed in cases for models, factor in kinds
    )
    figure = Figure(figsize=(10, 5), layout="constrained")
    for axes, decay in zip(figure.subplots(1, 2, sharey=True), SCHEDULES, strict=True):
        draw(axes, done, decay)
    study.write_figure(figure)
    rows = [(decay, batch, *row(done, batch, decay)) for decay in SCHEDULES for batch in BATCHES]
    study.write_results(done, markdown(TITLES, rows))


if __name__ == "__main__":
    main()
