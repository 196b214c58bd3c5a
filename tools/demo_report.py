"""Results of the demo in sentences, printed and at the beginning of its report."""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import fmean

from hpcdistill.evaluation.churn import churn
from hpcdistill.evaluation.evaluate import evaluate
from hpcdistill.reports.compare import Comparison, compare
from hpcdistill.reports.report import write_report


def describe_churn(one: float, codistilled: float, one_loss: float, codistilled_loss: float) -> str:
    """Describe the churn and the log loss of one model and of one of two that codistil."""
    change = 100 * (codistilled / one - 1)
    return (
        f"Clicks: trained again with another seed, one model changes its predictions by {100 * one:.2f} percentage "
        f"points on average, one of two that codistil by {100 * codistilled:.2f}: {abs(change):.0f} % "
        f"{'less' if change < 0 else 'more'}, at a log loss of {codistilled_loss:.4f} against {one_loss:.4f}."
    )


def describe_steps(found: Comparison) -> str:
    """Describe the cost of the lowest loss that both runs of the language model have reached, the plain run's first."""
    plain, codistilled = found.runs
    assert plain.reached is not None
    assert codistilled.reached is not None  # the target is a loss that both have reached
    return (
        f"Language model: the lowest loss that both runs reached, {found.target:.3f} {found.unit}, took a codistilled "
        f"group {codistilled.reached.steps:,} steps and the plain run {plain.reached.steps:,}. Until then both groups "
        f"had read {codistilled.reached.examples:,} sequences together, the plain run {plain.reached.examples:,}. The "
        f"lowest losses of the two runs are {codistilled.best:.3f} and {plain.best:.3f}."
    )


def churn_of(folder: Path) -> str:
    """Measure and describe the models of the click data in `folder`."""
    plain, first, second = (folder / name for name in ("plain", "codistilled-0", "codistilled-1"))
    scores = evaluate([str(plain), str(first), str(second)], None).scores
    losses = [
        fmean(scores[f"{run}:{group}"]["log_loss"] for run in runs for group in (0, 1))
        for runs in ([plain], [first, second])
    ]
    pairs = [(f"{plain}:0", f"{plain}:1"), (f"{first}:0", f"{second}:0")]
    return describe_churn(*(churn(a, b, None).mean_absolute_difference.value for a, b in pairs), *losses)


def main() -> None:
    """Write the report of the demo in the folder that the command line names, and print its sentences."""
    folder = Path(sys.argv[1])
    runs = [folder / "plain", folder / "codistilled"]
    sentences = [churn_of(folder / "clicks"), describe_steps(compare(runs))]
    write_report(runs, folder / "report.html", sentences)


if __name__ == "__main__":
    main()
