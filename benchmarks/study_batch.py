"""Steps to target: where doubling the synchronous batch stops helping, and what two-way codistillation does there.

At each batch size B: one model with B, one with 2B, and two codistilling models with B each, on disjoint data. The
last two cost the same. The target is what the model with B has reached in the end.
"""

from itertools import product
from statistics import fmean

from matplotlib.figure import Figure
from study import Run, Study, markdown, need_text, spread, steps_to

BATCHES = (4, 8, 16, 32, 64)
STEPS = 2400
SEEDS = {16: range(5)}  # elsewhere one
ALONE = ("--groups=1", "--codistill.weight=0")
SCHEDULES = {"constant": (), "cosine": ("--optimizer.decay=cosine",)}


def run(kind: str, batch: int, schedule: str, seed: int) -> Run:
    options = (f"--data.batch_size={batch}", f"--train.steps={STEPS}", f"--seed={seed}", *SCHEDULES[schedule])
    name = f"{kind}-{batch}-{schedule}-{seed}"
    if kind == "one":
        return Run(name, "language", (*options, *ALONE))
    return Run(name, "language", options, ranks=2)


def main() -> None:
    """Train all and tell."""
    study = Study("batch", __doc__)
    need_text()
    cases = [(batch, schedule, seed) for schedule, batch in product(SCHEDULES, BATCHES) for seed in seeds(batch)]
    wanted = [run(kind, b, *rest) for b, *rest in cases for kind in ("one", "two")]
    wanted += [run("one", 2 * b, *rest) for b, *rest in cases]
    done = study.train(wanted)
    rows, figure = [], Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for panel, schedule in zip(axes, SCHEDULES, strict=True):
        ratios: dict[str, list[float]] = {"two": [], "double": []}
        for batch in BATCHES:
            row = compare(done, batch, schedule, ratios)
            rows.append((schedule, batch, *row))
        for kind, label in (("two", "two codistilled, B each"), ("double", "one, 2B")):
            panel.plot(BATCHES, ratios[kind], "o-", label=label)
        panel.axhline(1, color="gray", linewidth=1)
        panel.set(title=f"learning rate: {schedule}", xlabel="batch B", xscale="log")
        panel.set_xticks(BATCHES, [str(b) for b in BATCHES], minor=False)
        panel.legend(frameon=False)
    axes[0].set_ylabel("steps to the final loss of one with B, ratio")
    study.draw(figure)
    titles = ("rate", "B", "final loss, one with B", "one with 2B", "codistilled", "steps: 2B / B", "codistilled / B")
    study.keep(done, markdown(titles, rows), steps=STEPS)


def seeds(batch: int) -> range:
    return SEEDS.get(batch, range(1))


def compare(done, batch, schedule, ratios):
    """One row of the table; the means go to `ratios`."""
    finals: dict[str, list[float]] = {"one": [], "double": [], "two": []}
    steps: dict[str, list[float]] = {"double": [], "two": []}
    for seed in seeds(batch):
        (one,) = done[f"one-{batch}-{schedule}-{seed}"]
        others = {"double": done[f"one-{2 * batch}-{schedule}-{seed}"], "two": done[f"two-{batch}-{schedule}-{seed}"]}
        target = one.best
        finals["one"].append(target)
        for kind, groups in others.items():
            finals[kind].append(fmean(group.best for group in groups))
            reached = [steps_to(group, target) for group in groups]
            steps[kind].append(fmean((r or STEPS) / (steps_to(one, target) or STEPS) for r in reached))
    for kind, values in ratios.items():
        values.append(fmean(steps[kind]))
    return (
        *(spread(finals[kind]) for kind in ("one", "double", "two")),
        *(spread(steps[kind], 2) for kind in ("double", "two")),
    )


if __name__ == "__main__":
    main()
