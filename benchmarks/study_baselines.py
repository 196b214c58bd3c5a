"""Baselines: codistillation beside other uses of one model's, or of two models', computation.

Those of Anil et al. 2018, Section 3: label smoothing, ensembles, and two-phase distillation, whose teachers are trained
first. `compute` is the number of models trained, teachers included, times the batch size in units of `BATCH`.
"""

from __future__ import annotations

from statistics import fmean

from hpcdistill.evaluation.evaluate import evaluate
from hpcdistill.storage.run_dir import RunDir
from study import ALONE, LANGUAGE, TEXT, Run, Study, format_mean, markdown, prepare_text

SEEDS = range(3)
BATCH = 16
SHARED = (*LANGUAGE, "--optimizer.decay=cosine")
FIXED = ("--groups=1", "--codistill.burn_in=0")


def training(name: str, seed: int, *options: str, ranks: int = 1, batch: int = BATCH) -> Run:
    """Return the run of one model on each rank."""
    options = (*SHARED, f"--seed={seed}", f"--data.batch_size={batch}", *options)
    return Run(f"{name}-{seed}", "language", options, ranks)


def main() -> None:
    """Train all cases and write the results."""
    study = Study("baselines", __doc__)
    prepare_text()
    cases = {
        "one": (1, lambda seed: training("one", seed, *ALONE)),
        "one, twice the batch": (2, lambda seed: training("double", seed, *ALONE, batch=2 * BATCH)),
        "label smoothing, uniform": (1, lambda seed: smoothed("uniform", seed)),
        "label smoothing, unigram": (1, lambda seed: smoothed("unigram", seed)),
        "two codistilled, disjoint data": (2, lambda seed: training("codistil", seed, ranks=2)),
        "two codistilled, the same data": (2, lambda seed: training("same", seed, "--data.partition=same", ranks=2)),
        "two apart": (2, lambda seed: training("apart", seed, "--codistill.weight=0", ranks=2)),
        "distilled from these two": (3, lambda seed: distilled(study, seed)),
    }
    done = study.train(make(seed) for _, make in cases.values() for seed in SEEDS)
    rows, found = [], {}
    for case, (compute, make) in cases.items():
        models, means = [], []
        for seed in SEEDS:
            folder = study.folder(make(seed).name)
            scores = evaluate([str(folder)], TEXT).scores
            models.append(fmean(one["loss"] for name, one in scores.items() if name != f"mean of {folder}"))
            means += [one["loss"] for name, one in scores.items() if name == f"mean of {folder}"]
        found[case] = {"models": models, "ensembles": means}
        rows.append((case, compute, format_mean(models), format_mean(means) if means else "-"))
    titles = ("case", "compute", "nats per byte, one model", "ensemble of the two")
    study.write_results(done, markdown(titles, rows), found=found)


def smoothed(prior: str, seed: int) -> Run:
    """Return the run with label smoothing: 0.1 / 1.1 of each target is the prior distribution."""
    return training(prior, seed, *FIXED, f"--codistill.teachers={prior}", "--codistill.weight=0.1")


def distilled(study: Study, seed: int) -> Run:
    """Return the run that distils from the mean of two models trained before."""
    run = RunDir(study.folder(training("apart", seed).name))
    checkpoints = ",".join(str(run.best_checkpoint(group)) for group in (0, 1))
    return training(
        "distilled", seed, *FIXED, "--codistill.teachers=checkpoints", f"--codistill.checkpoints={checkpoints}"
    )


if __name__ == "__main__":
    main()
