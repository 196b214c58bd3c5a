"""The command line: a table of the commands, and the way in which each of them ends."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from hpcdistill import __version__
from hpcdistill.cli import churn, compare, doctor, evaluate, export, plan, prepare, report, status, submit, train
from hpcdistill.cli.parser import Parser, require_known, require_separate_outputs
from hpcdistill.distributed.launch import end_job
from hpcdistill.output import forgive_output, log_to_stderr, print_error

COMMANDS = (prepare, train, submit, status, plan, report, compare, evaluate, churn, export, doctor)
"""Modules with `add_parser(commands)`, which names the function that runs the command.

They import what they need when they run: so `--help` is quick, and `prepare` needs neither torch nor MPI.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status. An error of a command that uses MPI ends the whole job.

    Args:
        arguments: the words after the program's name; without them, those of this process.
    """
    output = forgive_output()
    log_to_stderr()
    words = list(sys.argv[1:] if arguments is None else arguments)
    trains = words[:1] == ["train"]
    try:
        if "" not in sys.path:  # the start folder, where a model.factory may be; `python -m` has it there
            sys.path.append("")
        args = parse_arguments(words)
        exit_status: int = args.command(args)
    except (Exception, KeyboardInterrupt) as error:
        end_job(error, launched=trains or (words[:1] == ["doctor"] and "--slurm" in words))
    output.flush()
    if output.error and not trains:  # the results of training are in files
        print_error(f"hpcdistill: error: standard output cannot be written: {output.error}")
        return exit_status or 1
    return exit_status


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; `command` of the result runs it.

    Raises:
        UserError: an argument is unknown, missing or has a bad value, or an output is also an input.
    """
    args, unknown = build_parser().parse_known_args(words)
    if args.command is submit.run:
        args.training = unknown  # submit parses them as arguments of train
    else:
        require_known(unknown, args.parser)
    require_separate_outputs(args)
    return args


def build_parser() -> Parser:
    """Return the parser of all commands."""
    parser = Parser(
        prog="hpcdistill",
        description="Codistillation over MPI and Horovod: groups of workers train copies of a model, and each learns "
        "from the predictions of the others' stale weights.",
        example="prepare text --input /usr/lib/python3 --include '*.py' --output data.h5; "
        "mpirun -np 4 hpcdistill train configs/demo.toml --data.path=data.h5",
    )
    parser.add_argument("--version", action="version", version=f"hpcdistill {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    return parser
