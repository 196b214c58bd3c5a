"""Beyond the paper: changes that may raise the gain at the same cost.

Averaged weights, for teaching and for use, and a distillation weight that rises step by step; each beside one model
with the same change where it applies. The learning rate is constant.
"""

from __future__ import annotations

from statistics import fmean

from study import ALONE, LANGUAGE, Run, Study, format_mean, markdown, prepare_text, steps_ratio

SEEDS = range(5)
BATCH = 16
AVERAGE = "--train.average=0.99"
CASES: dict[str, tuple[int, int, tuple[str, ...]]] = {
    "one": (1, 1, ()),
    "one, twice the batch": (1, 2, ()),
    "two codistilled": (2, 1, ()),
    "one, averaged": (1, 1, (AVERAGE,)),
    "one, twice the batch, averaged": (1, 2, (AVERAGE,)),
    "two codistilled, averaged": (2, 1, (AVERAGE,)),
    "two codistilled, ramp of 500": (2, 1, ("--codistill.ramp=500",)),
}
"""Number of models, batch size in units of `BATCH`, and options of each case."""


def training(case: str, seed: int) -> Run:
    """Return the run of a case."""
    models, factor, options = CASES[case]
    batch = f"--data.batch_size={factor * BATCH}"
    alone = ALONE if models == 1 else ()
    return Run(
        f"{case.replace(', ', '-').replace(' ', '_')}-{seed}",
        "language",
        (*LANGUAGE, batch, f"--seed={seed}", *options, *alone),
        models,
    )


def main() -> None:
    """Train all cases and write the results."""
    study = Study("beyond", __doc__)
    prepare_text()
    done = study.train(training(case, seed) for seed in SEEDS for case in CASES)
    rows = []
    for case in CASES:
        of_seed = [done[training(case, seed).name] for seed in SEEDS]
        losses = [fmean(group.best for group in groups) for groups in of_seed]
        ratios = []
        for seed, groups in zip(SEEDS, of_seed, strict=True):
            (one,) = done[training("one", seed).name]
            ratios.append(steps_ratio(groups, one))
        rows.append((case, format_mean(losses), format_mean(ratios, 2)))
    study.write_results(done, markdown(("case", "nats per byte", "steps to the loss of one"), rows))


if __name__ == "__main__":
    main()
