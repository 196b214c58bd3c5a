"""Churn on click data: how much predictions change when a model is trained again with another seed.

Each of three models is trained twice: one DNN, an ensemble of two, and one of two that codistil. All see the same data,
each in its own order. The churn is the mean absolute difference of the predictions (Anil et al. 2018, Section 3). Ten
seeds make five independent pairs.
"""

from __future__ import annotations

from statistics import fmean

from matplotlib.figure import Figure

from hpcdistill.data.rows.store import RowStore
from hpcdistill.evaluation.churn import churn
from hpcdistill.evaluation.evaluate import evaluate
from study import CLICKS, Run, Study, format_mean, markdown, prepare_clicks

SEEDS = range(10)
STEPS = ("--train.steps=2000", "--codistill.burn_in=300", "--data.partition=same")
KINDS = {
    "one DNN": ("plain", (0,)),
    "ensemble of two": ("plain", (0, 1)),
    "one of two that codistil": ("codistil", (0,)),
}
"""Run of each model, and the groups whose models serve together."""
TITLES = ("model", "models to serve", "log loss above the best possible", "churn", "disagreement", "churn / one DNN's")


def training(kind: str, seed: int) -> Run:
    """Return the run of two groups, which teach each other (`codistil`) or do not (`plain`)."""
    options = (*STEPS, f"--seed={seed}", *(("--codistill.weight=0",) if kind == "plain" else ()))
    return Run(f"{kind}-{seed}", "clicks", options, ranks=2)


def measure(study: Study, kind: str) -> dict[str, list[float]]:
    """Return the loss of each seed's model, and the churn of each pair."""
    run, groups = KINDS[kind]
    folders = [study.folder(training(run, seed).name) for seed in SEEDS]
    serving = [",".join(f"{folder}:{group}" for group in groups) for folder in folders]
    pairs = [churn(one, other, CLICKS) for one, other in zip(serving[::2], serving[1::2], strict=True)]
    scored = [f"{folder}:0" if len(groups) == 1 else f"mean of {folder}" for folder in folders]
    found = [evaluate([str(folder)], CLICKS).scores[name] for folder, name in zip(folders, scored, strict=True)]
    return {
        "log_loss": [scores["log_loss"] for scores in found],
        "churn": [pair.mean_absolute_difference.value for pair in pairs],
        "disagreement": [pair.disagreement.value for pair in pairs],
    }


def bars(found: dict[str, dict[str, list[float]]]) -> Figure:
    """Draw the churn of each pair, and the means."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    for place, values in enumerate(found.values()):
        axes.barh(place, fmean(values["churn"]), color="#cdd")
        axes.plot(values["churn"], [place] * len(values["churn"]), "k.")
    axes.set_yticks(range(len(found)), list(found))
    axes.invert_yaxis()
    axes.set(xlabel="mean absolute difference of two trainings' predictions")
    return figure


def main() -> None:
    """Train all cases and write the results."""
    study = Study("churn", __doc__)
    prepare_clicks()
    done = study.train(training(kind, seed) for kind in ("plain", "codistil") for seed in SEEDS)
    with RowStore(CLICKS) as store:
        best = store.bayes_log_loss("validation")
    found = {kind: measure(study, kind) for kind in KINDS}
    base = fmean(found["one DNN"]["churn"])
    rows = []
    for kind, values in found.items():
        ratio = [value / base for value in values["churn"]]
        excess = [loss - best for loss in values["log_loss"]]
        texts = (
            format_mean(excess, 4),
            format_mean(values["churn"], 4),
            format_mean(values["disagreement"], 4),
            format_mean(ratio, 2),
        )
        rows.append((kind, len(KINDS[kind][1]), *texts))
    study.write_figure(bars(found))
    study.write_results(done, markdown(TITLES, rows), bayes_log_loss=best, found=found)


if __name__ == "__main__":
    main()
