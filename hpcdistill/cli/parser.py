"""Parser of the command line: it guesses nothing, and names a mistake with its remedy."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from hpcdistill.errors import UserError, suggestion

OUTPUTS = ("output", "json")
INPUTS = ("input", "validation", "data", "config", "run", "runs", "models", "a", "b")
EXAMPLES = {
    "prepare text": "prepare text --input /usr/lib/python3 --include '*.py' --output data.h5",
    "prepare clicks": "prepare clicks --synthetic --rows 1000000 --output clicks.h5",
    "prepare criteo": "prepare criteo --input day_0.gz --min-count 10 --output criteo.h5",
    "prepare table": "prepare table --input clicks.csv --label clicked --output table.h5",
    "prepare images": "prepare images --input train --validation val --output images.h5",
    "train": "train configs/demo.toml --data.path=data.h5 --run_dir=runs/mine --optimizer.lr=0.005",
    "submit": "submit run.toml --groups=4 --nodes-per-group=2 --sbatch='--time=2:00:00 --partition=gpu'",
    "status": "status runs/mine",
    "report": "report runs/plain runs/mine --output page.html",
    "compare": "compare runs/plain runs/mine --target 1.4",
    "evaluate": "evaluate runs/mine runs/plain:0 --data data.h5",
    "churn": "churn runs/a:0 runs/b:0,runs/b:1 --data data.h5",
    "doctor": "doctor --slurm --folder /scratch/me",
}
"""Of each command, for its help."""


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose errors take the same way out as all others, so that no rank is left behind.

    Options have to be written out: an abbreviation means another option once a key is added to the configuration.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)
        if example := EXAMPLES.get(self.prog.partition(" ")[2]):
            self.epilog = f"For example: hpcdistill {example}"
        self.set_defaults(parser=self, command=self._command_is_missing)  # a subcommand sets its own

    def error(self, message: str) -> NoReturn:
        """Raise instead of exiting."""
        raise UserError(f"{message}\n{self.format_usage()}")

    def _command_is_missing(self, args: argparse.Namespace) -> int:
        """Print the help that names the commands; the exit status is that of a wrong command line."""
        self.print_help()
        return 2


def require_known(unknown: Sequence[str], *parsers: Parser) -> None:
    """See that there are no arguments but those of `parsers`, the last of which is the command's.

    Raises:
        UserError: there are; the first is named, with the nearest option.
    """
    if unknown:
        actions = [action for parser in parsers for action in parser._actions if action.help != argparse.SUPPRESS]
        known = [option for action in actions for option in action.option_strings]
        hint = suggestion(unknown[0].split("=")[0], known)
        raise UserError(f"unknown argument {unknown[0]!r}{hint}; see {parsers[-1].prog} --help")


def require_apart(args: argparse.Namespace) -> None:
    """See that no output takes the place of an input, or of another output.

    Raises:
        UserError: one does.
    """
    outputs = _paths(args, OUTPUTS)
    for at, (option, output) in enumerate(outputs):
        for other, path in [*_paths(args, INPUTS), *outputs[:at]]:
            if output == path or (output.exists() and path.exists() and output.samefile(path)):
                raise UserError(f"--{option} {output} would take the place of {other} {path}; choose another file")


def _paths(args: argparse.Namespace, names: Sequence[str]) -> list[tuple[str, Path]]:
    values = {name: vars(args).get(name) for name in names}
    listed = {name: value if isinstance(value, list) else [value] for name, value in values.items() if value}
    return [(name, Path(path)) for name, paths in listed.items() for path in paths]


def count(text: str) -> int:
    """Parse a whole number > 0; an argparse type."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number > 0")
    return int(text)
