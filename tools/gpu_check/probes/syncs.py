"""Synchronizations with the GPU in ordinary steps of the trainer, as torch's debug mode counts them.

    python -m gpu_check.probes.syncs STEPS... --train '["configs/demo.toml", "--run_dir=runs/x"]'

One run for each number of STEPS: what a start, an end, a validation or a checkpoint costs is the same in all, so that
the difference is that of the steps between.
"""

import json
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import torch

from gpu_check.probes.options import make_parser
from gpu_check.report import Report

SYNCHRONIZES = "called a synchronizing CUDA operation"


def main() -> int:
    """Count in a process for each run, and compare."""
    parser = make_parser(__doc__)
    parser.add_argument("steps", type=int, nargs="+")
    parser.add_argument("--train", required=True, help="arguments of hpcdistill train, as a list in JSON")
    options = parser.parse_args()
    if len(options.steps) == 1:
        return count(options.steps[0], json.loads(options.train))
    places: list[Counter[str]] = []
    for steps in options.steps:
        command = [sys.executable, "-m", "gpu_check.probes.syncs", str(steps), "--train", options.train]
        output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        lines = [line.removeprefix("SYNC ") for line in output.splitlines() if line.startswith("SYNC ")]
        places.append(Counter(lines))
    report = Report(options.json)
    more = places[-1] - places[0]
    steps = options.steps[-1] - options.steps[0]
    for place, times in more.most_common():
        report.row("synchronizations of ordinary steps", place=place, per_step=times / steps)
    report.at_most(f"synchronizations a step, over {steps} steps", sum(more.values()) / steps, 0.1)
    return 0


def count(steps: int, arguments: list[str]) -> int:
    """Train, and print a line for each synchronization, with its place in the code."""
    from hpcdistill.cli.main import main as hpcdistill

    def show(message: object, category: object, filename: str, line: int, *_: object) -> None:
        if SYNCHRONIZES in str(message):
            print(f"SYNC {Path(filename).name}:{line}", flush=True)

    warnings.simplefilter("always")
    warnings.showwarning = show  # type: ignore[assignment]
    if torch.cuda.is_available():
        torch.cuda.set_sync_debug_mode("warn")
    run_dir = next(each for each in arguments if each.startswith("--run_dir="))
    changed = [each for each in arguments if each != run_dir]
    return hpcdistill(["train", *changed, f"{run_dir}-{steps}", f"--train.steps={steps}"])


if __name__ == "__main__":
    sys.exit(main())
