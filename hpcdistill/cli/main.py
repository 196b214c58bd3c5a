"""The commands: `hpcdistill prepare | train | submit | status | report | compare | evaluate | churn | doctor`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpcdistill import __version__
from hpcdistill.cli.parser import Parser, count, require_apart, require_known
from hpcdistill.cli.prepare import add_prepare
from hpcdistill.config.paths import input_path, model_name, model_names, output_path
from hpcdistill.distributed.launch import end_job, start_mpi
from hpcdistill.errors import UserError, warn
from hpcdistill.output import forgive_output, say

MODELS = "A checkpoint file; a run folder, for its groups' models; or RUN_DIR:GROUP, for the model of one."
SET_BY_SUBMIT = ("--exchange.transport=files", "--group=0")
"""As `slurm/groups.sbatch` adds to the arguments of training, with the number of each group."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status. An error of a command that uses MPI ends the whole job."""
    output = forgive_output()
    words = list(sys.argv[1:] if arguments is None else arguments)
    trains = words[:1] == ["train"]
    try:
        if "" not in sys.path:  # the start folder, where a model.factory may be; `python -m` has it there
            sys.path.append("")
        args = _parse(words)
        status: int = args.command(args)
    except (Exception, KeyboardInterrupt) as error:
        end_job(error, launched=trains or (words[:1] == ["doctor"] and "--slurm" in words))
    output.flush()
    if output.error and not trains:  # whose work is in files
        say(f"hpcdistill: error: standard output cannot be written: {output.error}")
        return status or 1
    return status


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    args, unknown = parser.parse_known_args(arguments)
    if args.command is _submit:  # the rest is for training, and had better be wrong here than hours later in a queue
        args.training = unknown
        args.job, unknown = parser.parse_known_args(["train", *unknown, *SET_BY_SUBMIT])
        require_known(unknown, args.job.parser, args.parser)
    else:
        require_known(unknown, args.parser)
    require_apart(args)
    return args


def _parser() -> Parser:
    parser = Parser(
        prog="hpcdistill",
        description="Codistillation over MPI and Horovod: groups of workers teach each other through stale weights.",
        epilog="A first run: hpcdistill prepare text --input /usr/lib/python3 --include '*.py' --output data.h5; "
        "mpirun -np 4 hpcdistill train configs/demo.toml --data.path=data.h5",
    )
    parser.add_argument("--version", action="version", version=f"hpcdistill {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    add_prepare(commands)
    _add_train(commands)
    _add_submit(commands)
    _add_status(commands)
    _add_report(commands)
    _add_compare(commands)
    _add_evaluate(commands)
    _add_churn(commands)
    _add_doctor(commands)
    return parser


def _add_train(commands: Any) -> None:
    train = commands.add_parser(
        "train",
        help="train; start it with mpirun or srun",
        usage="%(prog)s [-h] [--resume [{no,yes,strict}]] [--trust] CONFIG.toml [--section.key VALUE ...]",
        description="Train the configured model in groups that teach each other. Start one process per rank, by "
        "mpirun -np 4 hpcdistill train, or by srun.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    train.add_argument(
        "config", type=input_path, metavar="CONFIG.toml", help="the run; options below override its keys"
    )
    train.add_argument(
        "--resume",
        nargs="?",
        choices=("no", "yes", "strict"),
        const="yes",
        default="no",
        help="go on from the newest usable checkpoint in run_dir; =strict: only from the very newest",
    )
    _add_trust(train)
    from hpcdistill.config.schema import add_arguments

    train.set_defaults(command=_train, overrides=add_arguments(train))


def _add_submit(commands: Any) -> None:
    submit = commands.add_parser(
        "submit",
        help="submit each group to Slurm as a job of its own",
        usage="%(prog)s [-h] [--nodes-per-group N] [--ranks-per-node N] [--sbatch OPTIONS] CONFIG.toml [OPTION ...]",
        description="Submit a job array with one element for each group, to run in this folder. What is not an option "
        "here is one of train. The script is groups.sbatch in $HPCDISTILL_SLURM, else in ./slurm, else in this "
        "package.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    submit.add_argument("--nodes-per-group", type=count, default=1, metavar="N", help="nodes of each job")
    submit.add_argument("--ranks-per-node", type=count, default=1, metavar="N", help="ranks on each node, one a GPU")
    submit.add_argument("--sbatch", default="", metavar="OPTIONS", help="more options of sbatch, in one argument")
    submit.set_defaults(command=_submit)


def _add_status(commands: Any) -> None:
    status = commands.add_parser("status", help="how far a run is, while it goes on")
    status.add_argument("run", type=input_path, metavar="RUN_DIR", help="its folder")
    status.set_defaults(command=_status)


def _add_report(commands: Any) -> None:
    report = commands.add_parser("report", help="one page with the curves of one or more runs")
    report.add_argument("runs", type=input_path, nargs="+", metavar="RUN_DIR", help="run folders")
    report.add_argument("--output", type=output_path, required=True, metavar="FILE.html", help="the page to write")
    report.set_defaults(command=_report)


def _add_compare(commands: Any) -> None:
    compare = commands.add_parser(
        "compare",
        help="how many steps, and how long, runs took to reach a loss",
        description="From the metrics of runs: steps, time and examples until the validation loss was as low as the "
        "target. Runs with as many examples per step, those of all groups together, take equal computation per step.",
    )
    compare.add_argument("runs", type=input_path, nargs="+", metavar="RUN_DIR", help="run folders, the baseline first")
    compare.add_argument(
        "--target", type=float, metavar="LOSS", help="in nats; without it, the lowest that all runs have reached"
    )
    compare.add_argument(
        "--output", type=output_path, metavar="FILE.html|FILE.svg", help="the page or the figure to write"
    )
    _add_json(compare)
    compare.set_defaults(command=_compare)


def _add_evaluate(commands: Any) -> None:
    evaluate = commands.add_parser(
        "evaluate",
        help="how good trained models, and ensembles of them, are",
        description="Score models on validation data, each by itself, those of a run together, and all together: an "
        "ensemble predicts the mean of their probabilities. " + MODELS,
    )
    evaluate.add_argument("models", type=model_name, nargs="+", metavar="MODEL", help="as runs/mine, or runs/mine:0")
    _add_models(evaluate)
    evaluate.set_defaults(command=_evaluate)


def _add_churn(commands: Any) -> None:
    churn = commands.add_parser(
        "churn",
        help="how much the predictions of two models differ",
        description="How much the predictions of two models for the validation data differ. A model is "
        "several ones joined by commas, too: the mean of the probabilities that these predict. " + MODELS,
    )
    churn.add_argument("a", type=model_names, metavar="A", help="a model, as runs/one:0, or runs/one:0,runs/one:1")
    churn.add_argument("b", type=model_names, metavar="B", help="the model in its place")
    _add_models(churn)
    churn.set_defaults(command=_churn)


def _add_models(command: Any) -> None:
    command.add_argument(
        "--data", type=input_path, required=True, metavar="FILE.h5", help="the store with validation data"
    )
    command.add_argument(
        "--checkpoint", choices=("best", "last"), default="best", help="which one of a run's; without it, the best"
    )
    _add_trust(command)
    _add_json(command)


def _add_trust(command: Any) -> None:
    command.add_argument(
        "--trust", action="store_true", help="run the code that checkpoints of other users name, as model.factory"
    )


def _add_json(command: Any) -> None:
    command.add_argument("--json", type=output_path, metavar="FILE", help="write what was found there, too")


def _add_doctor(commands: Any) -> None:
    doctor = commands.add_parser("doctor", help="check that everything a run needs is here and works")
    doctor.add_argument("--slurm", action="store_true", help="also what a Slurm job needs; start it there, by srun")
    doctor.add_argument(
        "--folder", type=input_path, metavar="DIR", help="with --slurm: where runs will be written; without, it is here"
    )
    doctor.set_defaults(command=_doctor)


# Each command imports what it needs when it runs, so that `prepare` needs no MPI and `--help` is quick.


def _train(args: argparse.Namespace) -> int:
    from hpcdistill.distributed.stop import SIGNALS, StopRequest

    with StopRequest() as stop:
        from hpcdistill.config.schema import load_config
        from hpcdistill.training.loop import Outcome, train

        config = load_config(args.config, args.overrides, args)
        outcome = train(config, args.resume, stop, args.trust)
        if outcome is Outcome.NOTHING_TO_DO:
            return 0
        from mpi4py import MPI

        # After this all groups' files are complete.
        unfinished = MPI.COMM_WORLD.allreduce(outcome is Outcome.STOPPED)
        if MPI.COMM_WORLD.rank == 0:
            _report_on(config.run_dir)
            if unfinished:
                print("hpcdistill: stopped as asked, with checkpoints; --resume goes on from there", flush=True)
        MPI.COMM_WORLD.Barrier()  # the first rank that exits without success has srun kill all
    for number in SIGNALS:  # all is written: from here to the end of Python none may change the exit status
        signal.signal(number, signal.SIG_IGN)
    return os.EX_TEMPFAIL if unfinished else 0


def _report_on(run_dir: Path) -> None:
    try:
        from hpcdistill.reports.report import write_report

        write_report([run_dir], run_dir / "report.html")
    except Exception as error:  # whatever it is, what was trained is safe
        kind = "" if isinstance(error, OSError | UserError) else f"{type(error).__name__}: "
        warn(f"no report: {kind}{error}; hpcdistill report {run_dir} --output FILE.html makes it elsewhere")


def _submit(args: argparse.Namespace) -> int:
    from hpcdistill.cli.submit import submit
    from hpcdistill.config.schema import load_config
    from hpcdistill.storage.run_dir import require_no_checkpoints

    for word in args.training:
        if word.split("=")[0] in ("--group", "--exchange.transport") and word not in SET_BY_SUBMIT[:1]:
            raise UserError(f"{word}: each job gets its --group, and {SET_BY_SUBMIT[0]}, from submit; leave it out")
    config = load_config(args.job.config, args.job.overrides, args.job)
    if args.job.resume == "no":
        require_no_checkpoints(config.run_dir, sorted((config.run_dir / "checkpoints").glob("*.h5")))
    number = submit(config, args.training, args.nodes_per_group, args.ranks_per_node, args.sbatch)
    print(
        f"submitted {config.groups} groups as job array {number}; hpcdistill status {config.run_dir} shows how they do"
    )
    return 0


def _status(args: argparse.Namespace) -> int:
    from hpcdistill.reports.status import status

    print(status(args.run))
    return 0


def _report(args: argparse.Namespace) -> int:
    from hpcdistill.reports.report import write_report

    try:
        write_report(args.runs, args.output)
    except OSError as error:
        raise UserError(f"--output {args.output} cannot be written: {error.strerror}; choose another file") from None
    return 0


def _compare(args: argparse.Namespace) -> int:
    from hpcdistill.reports.compare import compare, draw_comparison
    from hpcdistill.reports.tables import tell

    found = compare(args.runs, args.target)
    tell(found, args.json)
    if args.output:
        draw_comparison(found, args.output)
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from hpcdistill.evaluation.evaluate import evaluate
    from hpcdistill.reports.tables import tell

    tell(evaluate(args.models, args.data, args.checkpoint, args.trust), args.json)
    return 0


def _churn(args: argparse.Namespace) -> int:
    from hpcdistill.evaluation.churn import churn
    from hpcdistill.reports.tables import tell

    tell(churn(args.a, args.b, args.data, args.checkpoint, args.trust), args.json)
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from hpcdistill.doctor import machine as doctor

    if not args.slurm:
        if args.folder:
            raise UserError("--folder is checked with --slurm only; add --slurm")
        return doctor.main()
    try:
        start_mpi()  # which does not wait for ever, as importing it would
        from hpcdistill.doctor import cluster as cluster_doctor
    except (ImportError, RuntimeError):  # MPI does not load, as the other checks will say
        return doctor.main()
    return doctor.main(cluster_doctor.checks(args.folder or Path()))
