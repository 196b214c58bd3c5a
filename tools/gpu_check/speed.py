"""Command `speed`: times of the fused loss and of the loss of hidden states, and counters of the hardware."""

from __future__ import annotations

import csv
import shutil
from functools import partial

from gpu_check.cases import profiled
from gpu_check.environment import Environment
from gpu_check.report import Report
from gpu_check.steps import NotRunError, Steps
from gpu_check.truth import compile_ahead, set_up

METRICS = {
    "gpu__time_duration.sum": "ns",
    "dram__bytes.sum": "bytes of memory",
    "lts__t_sector_hit_rate.pct": "L2 hits %",
    "smsp__inst_executed.sum": "instructions of warps",
    "smsp__issue_active.avg.pct_of_peak_sustained_active": "issue %",
    "sm__inst_executed_pipe_xu.avg.pct_of_peak_sustained_active": "XU %",
}


def run(steps: Steps, environment: Environment) -> None:
    """Run the steps of this command."""

    def bench(report: Report, seconds: float, what: str) -> None:
        steps.probe(report, environment.probe("bench", what), seconds, environment.variables)

    set_up(steps, environment)
    steps.run("compile", partial(compile_ahead, steps, environment, "table"), limit=90, least=20)
    steps.run("table", lambda r, s: bench(r, s, "table"), limit=150, least=30)
    steps.run("loss of hidden states", lambda r, s: bench(r, s, "linear"), limit=90, least=30)
    steps.run("variants", partial(time_variants, steps, environment), limit=60, least=20)
    steps.run("ncu", partial(profile, steps, environment), limit=120, least=30)
    steps.run("beside others", lambda r, s: bench(r, s, "others"), limit=150, least=30, needs=("table",))


def time_variants(steps: Steps, environment: Environment, report: Report, seconds: float) -> None:
    """Time other launches of Triton's kernel."""
    if environment.is_dry:
        raise NotRunError("it needs a GPU")
    steps.probe(report, environment.probe("variants"), seconds, environment.variables)


def profile(steps: Steps, environment: Environment, report: Report, seconds: float) -> None:
    """Count bytes, cache hits and instructions of some kernels with ncu."""
    if environment.is_dry or shutil.which("ncu") is None:
        raise NotRunError("ncu is not on PATH" if not environment.is_dry else "it needs a GPU")
    kernels = list(profiled(environment.is_dry))
    for implementation, V, N in kernels:
        options = ["--csv", "--profile-from-start", "off", "--clock-control", "none", "--metrics", ",".join(METRICS)]
        call = environment.probe("bench", "one", "--call", implementation, str(V), str(N))
        status, output = steps.output_of(["ncu", *options, *call], seconds / len(kernels), environment.variables)
        found = metrics_of(output)
        note = "" if found else f"status {status}: {output[-200:]}"
        report.row("counters", implementation=implementation, V=V, N=N, **found, note=note)


def metrics_of(output: str) -> dict[str, float]:
    """Return the metrics in ncu's table by our names."""
    lines = [line for line in output.splitlines() if line.startswith('"')]
    rows = csv.DictReader(lines)
    found = {}
    for row in rows:
        name, value = METRICS.get(row.get("Metric Name", "")), row.get("Metric Value", "")
        if name:
            found[name] = float(value.replace(",", ""))
    return found
