"""The command `train`."""

from __future__ import annotations

import argparse
import logging
import os
import signal
from pathlib import Path

from hpcdistill.cli.options import add_trust_option
from hpcdistill.cli.parser import Parser, Subparsers
from hpcdistill.cli.recipes import config_path
from hpcdistill.config.load import add_keys, load_config
from hpcdistill.errors import UserError

logger = logging.getLogger(__name__)


def add_parser(commands: Subparsers) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "train",
        help="train; start it with mpirun, srun or torchrun",
        usage="%(prog)s [-h] [--resume [{no,yes,strict}]] [--trust] CONFIG.toml [--section.key VALUE ...]",
        description="Train the configured model in groups that teach each other. Start one process per rank: "
        "mpirun -np 4 hpcdistill train …, or srun; without MPI, torchrun --standalone --nproc-per-node 4 "
        "-m hpcdistill train … --exchange.transport=files --gradients=torch. The options below are the keys of the "
        "configuration; each overrides the value in the file. SIGTERM, SIGINT and SIGUSR2 stop the run with a "
        "checkpoint and exit status 75; --resume continues it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        example="train configs/demo.toml --data.path=data.h5 --run_dir=runs/mine --optimizer.lr=0.005",
        add_arguments=add_arguments,
    )
    parser.set_defaults(command=run)


def add_arguments(parser: Parser) -> None:
    """Add the arguments of `train`, among them one option for each key of the configuration."""
    from hpcdistill.models.registry import config_class

    parser.add_argument(
        "config",
        type=config_path,
        metavar="CONFIG.toml",
        help="configuration of the run: a file, or a recipe by its name",
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        choices=("no", "yes", "strict"),
        const="yes",
        default="no",
        help="continue from the newest usable checkpoint in run_dir; =strict: only if the newest one is usable",
    )
    add_trust_option(parser)
    add_keys(parser, config_class())


def run(args: argparse.Namespace) -> int:
    """Train; return `os.EX_TEMPFAIL` if any group was stopped before its end. Collective over the world."""
    from hpcdistill.distributed.stop import SIGNALS, StopRequest

    with StopRequest() as stop:
        from hpcdistill.distributed.world import start_world
        from hpcdistill.models.registry import config_class
        from hpcdistill.training.loop import Outcome, train

        config = load_config(args.config, config_class(), args)
        outcome = train(config, args.resume, stop, args.trust)
        if outcome is Outcome.NOTHING_TO_DO:
            return 0
        world = start_world()
        unfinished = world.allreduce(outcome is Outcome.STOPPED)  # after this all groups' files are complete
        if world.rank == 0:
            write_run_report(config.run_dir)
            if unfinished:
                print("hpcdistill: stopped as asked, with checkpoints; --resume continues from there", flush=True)
        world.Barrier()  # the first rank that exits without success makes srun kill all others
    for number in SIGNALS:  # all is written: until Python ends, no signal may change the exit status
        signal.signal(number, signal.SIG_IGN)
    return os.EX_TEMPFAIL if unfinished else 0


def write_run_report(run_dir: Path) -> None:
    """Write the report of a run into its folder; warn where that fails."""
    try:
        from hpcdistill.reports.report import write_report
        from hpcdistill.storage.run_dir import RunDir

        write_report([run_dir], RunDir(run_dir).report)
    except Exception as error:  # whatever it is, what was trained is safe
        kind = "" if isinstance(error, OSError | UserError) else f"{type(error).__name__}: "
        logger.warning(f"no report: {kind}{error}; hpcdistill report {run_dir} --output FILE.html makes it elsewhere")
