"""The parser of every command line: it guesses nothing, and names a mistake with its remedy."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from hpcdistill.config.paths import input_path, model_name, model_names, output_path
from hpcdistill.errors import UserError, suggestion

INPUT_TYPES = (input_path, model_name, model_names)

Subparsers: TypeAlias = "argparse._SubParsersAction[Parser]"
"""Collection to which each command adds its own parser."""


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that raises its errors, so that main() ends all ranks of a job and not only this one.

    Options have to be written out: an abbreviation would change its meaning once a key is added to the configuration.

    Args:
        example: words of a typical command line, shown at the end of --help.
        add_arguments: function that adds arguments when they are first needed; the others are added by its caller.
        options: those of `ArgumentParser`.
    """

    def __init__(
        self, *, example: str = "", add_arguments: Callable[[Parser], None] | None = None, **options: Any
    ) -> None:
        super().__init__(**options, allow_abbrev=False)
        self._add_arguments = add_arguments
        if example:
            self.epilog = f"Example: hpcdistill {example}"
        self.set_defaults(parser=self, command=self._print_commands)  # a subcommand sets its own

    def parse_known_args(  # type: ignore[override] # which the stubs overload
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Add the arguments that were left until now, then parse."""
        if self._add_arguments:
            add_arguments, self._add_arguments = self._add_arguments, None
            add_arguments(self)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise `UserError` instead of exiting."""
        raise UserError(f"{message}\n{self.format_usage()}")

    def _print_commands(self, args: argparse.Namespace) -> int:
        """Print the help, since the command is missing; return the exit status of a wrong command line."""
        self.print_help()
        return 2


def require_known(unknown: Sequence[str], *parsers: Parser) -> None:
    """Check that `unknown`, the arguments that no parser has recognized, is empty.

    Args:
        unknown: the arguments that remain after parsing.
        parsers: those whose options are suggested; the last one is the command's.

    Raises:
        UserError: there is an unknown argument; the message names the first one, and the most similar option.
    """
    if unknown:
        actions = [action for parser in parsers for action in parser._actions if action.help != argparse.SUPPRESS]
        known = [option for action in actions for option in action.option_strings]
        hint = suggestion(unknown[0].split("=")[0], known)
        raise UserError(f"unknown argument {unknown[0]!r}{hint}; see {parsers[-1].prog} --help")


def require_separate_outputs(args: argparse.Namespace) -> None:
    """Check that no output file is also an input, or another output.

    Raises:
        UserError: one is.
    """
    outputs = list(_paths(args, output_path))
    for at, (option, output) in enumerate(outputs):
        for other, path in [*_paths(args, *INPUT_TYPES), *outputs[:at]]:
            if output == path or (output.exists() and path.exists() and output.samefile(path)):
                raise UserError(f"--{option} {output} would take the place of {other} {path}; choose another file")


def _paths(args: argparse.Namespace, *types: Any) -> Iterator[tuple[str, Path]]:
    """Yield the name and the value of each argument that was parsed as one of `types`."""
    for action in args.parser._actions:
        if action.type in types and (value := getattr(args, action.dest)):
            yield from ((action.dest, Path(path)) for path in (value if isinstance(value, list) else [value]))


def positive_int(text: str) -> int:
    """Parse an integer > 0; an argparse type."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer > 0")
    return int(text)
