"""Command line of the check."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from gpu_check import speed, trainer, truth
from gpu_check.environment import Environment
from gpu_check.folder import PACKED, Packed, Work
from gpu_check.pack import ROOT, pack
from gpu_check.steps import Steps

SECONDS = 9.5 * 60


def main() -> int:
    """Pack, or run one of the three commands; return 1 if a bar was missed."""
    options = make_parser().parse_args()
    if options.command == "pack":
        packed = pack(options.output, not options.without_packages, options.curve_steps)
        print(f"{packed.path}: {packed.nbytes() / 1e6:.1f} MB; carry it to the GPU, and see its README.md")
        return 0
    packed = Packed(PACKED)
    if not packed.manifest.exists():
        raise SystemExit(f"gpu_check: {PACKED} is not a packed folder; run `make gpu-check`, and its script `run`")
    commit = json.loads(packed.manifest.read_text())["commit"]
    note = f"Commit {commit}" + (", dry run on a CPU: no figure counts." if options.dry_run else ".")
    environment = Environment(packed, Work.open(options.work, packed), options.dry_run)
    steps = Steps(options.command, options.results, options.seconds, options.only, note)
    if options.command == "truth":
        truth.run(steps, environment)
    elif options.command == "speed":
        speed.run(steps, environment)
    else:
        trainer.run(steps, environment, packed)
    print(f"results: {options.results / options.command}.md")
    return 0 if steps.passed else 1


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="gpu_check",
        description="Check the package on a GPU that can be used for a short time: pack on a machine with network, "
        "carry the folder, and run the three commands there.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="put all that is needed into one folder")
    packing.add_argument(
        "--output", type=Path, default=ROOT / "build" / "gpu-check", help="the folder (default: build/gpu-check)"
    )
    packing.add_argument(
        "--without-packages", action="store_true", help="leave out wheels and Horovod's source; needs no network"
    )
    packing.add_argument(
        "--curve-steps", type=int, default=200, help="steps on this CPU to compare with (default: 200)"
    )
    for name, text in (
        ("truth", "build the kernels and compare them with the formula"),
        ("speed", "measure the kernels"),
        ("trainer", "train on the GPU"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("--results", type=Path, default=Path("gpu-check-results"), help="folder of the results")
        command.add_argument("--work", type=Path, help="folder for what is built (default: in the temporary folder)")
        command.add_argument(
            "--seconds", type=float, default=SECONDS, help=f"time for all steps (default: {SECONDS:g})"
        )
        command.add_argument("--only", nargs="+", default=[], metavar="STEP", help="steps to run; others are left out")
        command.add_argument("--dry-run", action="store_true", help="small shapes on a CPU, to try the program itself")
    return parser


if __name__ == "__main__":
    sys.exit(main())
