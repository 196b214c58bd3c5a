"""Saturated batch: two groups of batch B against one of 2B, where doubling saves less than 5 % of the steps.

The task has a rule without noise (`rule_task.py`), so that small batches give nearly exact gradients. No example comes
twice. A pilot measures the noise scale. All arms cost the same, with the forward passes of teachers, unless their names
say otherwise. Doubling saves less than 5 % of the steps if one of 2B with 95 % of the steps is no better than one of B
with all of them, which costs half.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

from matplotlib.figure import Figure

from equal_cost import Arm, Found, Regime, affordable, as_json, compare, training
from study import ALONE, Run, Study, format_mean, markdown

BATCH = 16384
"""Nine to fifteen times the average noise scale of the first 250 steps with a batch of 1024, 1100 to 1800 examples."""
STEPS = 120
"""Steps of one model with 2B."""
SEEDS = range(1, 6)
DOUBLED = "one of 2B"
REGIME = Regime(
    "rule", "../benchmarks/saturated", (), BATCH, cost=2 * 3 * STEPS, rates=(1e-2, 3e-2, 1e-1), decays=(0.0,)
)
APART = ("--codistill.weight=0",)
ARMS = {
    DOUBLED: Arm("doubled", batch=2, options=ALONE),
    "one of B, twice the steps": Arm("one", options=ALONE),
    "two of B that codistil, burn-in 25 %": Arm("two", groups=2, teachers=1),
    "two of B apart, each": Arm("apart", groups=2, options=APART),
    "two of B apart, ensemble": Arm("apart", groups=2, options=APART, is_ensemble=True),
}
OTHERS = {
    "two of B that codistil, burn-in 40 %": (
        replace(REGIME, name="rule40", burn_in=0.4),
        ARMS["two of B that codistil, burn-in 25 %"],
    ),
    "one of B, half the cost": (replace(REGIME, name="half", cost=REGIME.cost // 2), ARMS["one of B, twice the steps"]),
    "one of 2B, 95 % of the cost": (replace(REGIME, name="less", cost=REGIME.cost * 95 // 100), ARMS[DOUBLED]),
}
"""Arms whose burn-in or cost differs from the regime's."""
TITLES = ("arm", "cost", "rate", "steps", "validation loss", f"less that of {DOUBLED}")


def pilot() -> Run:
    """Return a short training of two groups, in which no teacher teaches, for `hpcdistill plan`."""
    options = ("--train.accumulate=2", f"--train.steps={STEPS}", f"--codistill.burn_in={STEPS}")
    return Run(
        "pilot",
        REGIME.workload,
        (*options, f"--train.validate_every={STEPS // 10}", f"--optimizer.lr={REGIME.rates[1]}", "--seed=0"),
        ranks=2,
    )


def row(name: str, regime: Regime, found: Found, base: Found) -> tuple[object, ...]:
    """Return the cells of an arm."""
    less = [loss - other for loss, other in zip(found.losses, base.losses, strict=True)]
    difference = "-" if found is base else format_mean(less, 4)
    cost = f"{regime.cost / REGIME.cost:.2f}"
    return name, cost, f"{found.setting.rate:g}", found.steps, format_mean(found.losses, 4), difference


def draw(study: Study, found: dict[str, tuple[Regime, Arm, Found]]) -> Figure:
    """Draw the mean loss over seeds by cost."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, (regime, arm, each) in found.items():
        if arm.is_ensemble:
            continue
        runs = [study.metrics(training(regime, arm, each.setting, seed).name) for seed in SEEDS]
        steps = runs[0][0].column("validation_loss")[0]
        curves = [group.column("validation_loss")[1] for groups in runs for group in groups]
        total = affordable(arm, regime.cost, regime.burn_in)[0]
        costs = [step / total * regime.cost / REGIME.cost for step in steps]
        axes.plot(costs, [fmean(losses) for losses in zip(*curves, strict=True)], label=name)
    axes.set(xlabel="share of the steps × cost of the training", ylabel="validation loss, nats", ylim=(0.8, 1.3))
    axes.legend(frameon=False, fontsize="small")
    return figure


def main() -> None:
    """Train all cases and write the results."""
    study = Study("saturated", __doc__)
    done = study.train([pilot()])
    scales = [group.column("noise_scale")[1] for group in done["pilot"]]
    found, runs = compare(study, REGIME, ARMS, SEEDS)
    results = {name: (REGIME, ARMS[name], each) for name, each in found.items()}
    for name, (regime, arm) in OTHERS.items():
        found, more = compare(study, regime, {name: arm}, SEEDS)
        results[name] = (regime, arm, found[name])
        runs |= more
    base = results[DOUBLED][2]
    rows = [row(name, regime, each, base) for name, (regime, _, each) in results.items()]
    study.write_figure(draw(study, results))
    facts = {name: as_json(regime, {name: each}) for name, (regime, _, each) in results.items()}
    study.write_results(done | runs, markdown(TITLES, rows), noise_scale=[each[-1:] for each in scales], found=facts)


if __name__ == "__main__":
    main()
