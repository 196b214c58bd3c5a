"""The command line as a whole: its commands, their help, and what it refuses."""

import argparse
import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from hpcdistill import __version__
from hpcdistill.cli.main import build_parser, main, parse_arguments
from hpcdistill.errors import UserError

pytestmark = pytest.mark.alone

PARSER = build_parser()


@pytest.mark.parametrize("arguments", [["trian"], ["train"], ["prepare", "txt"], ["report", "--output=x.html"]])
def test_incomplete_commands_raise_with_usage(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def end_job(error: BaseException, launched: bool) -> NoReturn:  # which would end all ranks
        raise error

    monkeypatch.setattr("hpcdistill.cli.main.end_job", end_job)
    with pytest.raises(UserError, match="usage: hpcdistill"):
        main(arguments)


@pytest.mark.parametrize(("arguments", "commands"), [([], "evaluate"), (["prepare"], "criteo")])
def test_no_command_prints_those_that_there_are(
    arguments: list[str], commands: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert commands in capsys.readouterr().out


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"hpcdistill {__version__}\n"


def subparsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from subparsers(each)


def test_no_command_takes_an_abbreviated_option() -> None:
    parsers = list(subparsers(build_parser()))
    assert len(parsers) == 17
    assert not any(parser.allow_abbrev for parser in parsers)


def test_the_help_of_each_command_has_an_example() -> None:
    commands = [parser for parser in subparsers(PARSER) if not parser._subparsers]
    examples = [re.fullmatch(r"Example: (hpcdistill .*)", parser.epilog or "") for parser in commands]
    for parser, example in zip(commands, examples, strict=True):
        assert example, parser.prog
        program, *words = shlex.split(example[1])
        assert parser.prog.split() == [program, *words][: len(parser.prog.split())]
        if words[0] != "submit":  # whose options are mostly those of train
            assert PARSER.parse_args(words).parser.prog == parser.prog


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "train run.toml --train.step=3",
            r"'--train.step=3' \(did you mean '--train.steps'\?\); see hpcdistill train --help",
        ),
        ("train run.toml --resum", r"\(did you mean '--resume'\?\)"),
        ("train run.toml --lr=3", r"\(did you mean '--optimizer.lr'\?\)"),
        ("train run.toml --optimiser.lr 3", r"\(did you mean '--optimizer.lr'\?\)"),
        ("train run.toml --batch-size=3", r"\(did you mean '--data.batch_size'\?\)"),
        ("train run.toml --dat=3", r"unknown argument '--dat=3'(?! \(did you mean '--data'\?\))"),
        ("train run.toml more.toml", r"unknown argument 'more.toml'"),
        ("evaluate a --data=b --chekpoint=last", r"\(did you mean '--checkpoint'\?\); see hpcdistill evaluate --help"),
        (
            "prepare text --input a --output b --vocab=9",
            r"\(did you mean '--vocabulary'\?\); see hpcdistill prepare text",
        ),
    ],
)
def test_a_misspelt_option_is_refused_with_the_nearest(tmp_path: Path, command: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_arguments(command.split())


def test_a_factory_is_found_in_the_start_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command `hpcdistill` finds it too, though Python searches the folder of it, not the start folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder])
    Path("a_factory_of_mine.py").write_text("")
    main([])
    assert importlib.import_module("a_factory_of_mine").__file__ == str(tmp_path / "a_factory_of_mine.py")
