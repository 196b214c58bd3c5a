"""The commands: `hpcdistill prepare | train | report | doctor`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from hpcdistill.errors import UserError, suggestion
from hpcdistill.groups import end_job


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose errors take the same way out as all others, so that no rank is left behind."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of exiting."""
        raise UserError(f"{message}\n{self.format_usage()}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status. Under MPI an error ends the whole job."""
    try:
        parser, train = _parsers()
        args, unknown = parser.parse_known_args(arguments)
        if unknown:
            known = train._option_string_actions
            option = unknown[0].split("=")[0]
            raise UserError(f"unknown argument {unknown[0]!r}{suggestion(option, known)}; see {parser.prog} --help")
        status: int = args.command(args)
        return status
    except (Exception, KeyboardInterrupt) as error:
        end_job(error)


def _parsers() -> tuple[Parser, Parser]:
    parser = Parser(
        prog="hpcdistill",
        description="Codistillation over MPI and Horovod: groups of workers teach each other through stale weights.",
        epilog="A first run: hpcdistill prepare text --input /usr/lib/python3 --include '*.py' --output data.h5; "
        "mpirun -np 4 hpcdistill train configs/demo.toml --data.path=data.h5",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_prepare(commands)
    train = _add_train(commands)
    _add_report(commands)
    doctor = commands.add_parser("doctor", help="check that everything a run needs is here and works")
    doctor.set_defaults(command=_doctor)
    return parser, train


def _add_prepare(commands: Any) -> None:
    prepare = commands.add_parser("prepare", help="turn data into an HDF5 store")
    kinds = prepare.add_subparsers(title="kinds of data", required=True, metavar="KIND")
    text = kinds.add_parser(
        "text",
        help="text files or folders, one token a byte",
        description="One byte is one token. About 5 % of the files become the validation part; of one file its end.",
    )
    text.add_argument("--input", type=Path, nargs="+", required=True, metavar="PATH", help="files or folders")
    text.add_argument("--output", type=Path, required=True, metavar="FILE.h5", help="the store to make")
    text.add_argument("--include", default="*", metavar="GLOB", help="file names to take from folders, as '*.py'")
    text.add_argument("--exclude", nargs="*", default=[], metavar="GLOB", help="files and folders to pass over")
    text.set_defaults(command=_prepare_text)


def _add_train(commands: Any) -> Parser:
    train: Parser = commands.add_parser(
        "train",
        help="train; start it with mpirun or srun",
        description="Train the configured model in groups that teach each other. Start one process per rank: "
        "mpirun -np 4 python -m hpcdistill train configs/demo.toml --optimizer.lr=0.005",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    train.add_argument("config", type=Path, metavar="CONFIG.toml", help="the run; options below override its keys")
    train.add_argument(
        "--resume",
        nargs="?",
        choices=("no", "yes", "strict"),
        const="yes",
        default="no",
        help="go on from the newest usable checkpoint in run_dir; =strict: only from the very newest",
    )
    from hpcdistill.config import add_arguments

    train.set_defaults(command=_train, overrides=add_arguments(train))
    return train


def _add_report(commands: Any) -> None:
    report = commands.add_parser("report", help="one page with the curves of one or more runs")
    report.add_argument("runs", type=Path, nargs="+", metavar="RUN_DIR", help="run folders")
    report.add_argument("--output", type=Path, required=True, metavar="FILE.html", help="the page to write")
    report.set_defaults(command=_report)


# Each command imports what it needs when it runs, so that `prepare` needs no MPI and `--help` is quick.


def _prepare_text(args: argparse.Namespace) -> int:
    from hpcdistill.data.text import prepare_text

    prepare_text(args.input, args.output, args.include, args.exclude)
    return 0


def _train(args: argparse.Namespace) -> int:
    from mpi4py import MPI

    from hpcdistill.config import load_config
    from hpcdistill.train import train

    config = load_config(args.config, args.overrides, args)
    train(config, args.resume)
    MPI.COMM_WORLD.Barrier()  # all groups' metrics are complete
    if MPI.COMM_WORLD.rank == 0:
        from hpcdistill.report import write_report

        write_report([config.run_dir], config.run_dir / "report.html")
    return 0


def _report(args: argparse.Namespace) -> int:
    from hpcdistill.report import write_report

    write_report(args.runs, args.output)
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from hpcdistill import doctor

    return int(doctor.main())
