"""Paths as users write them: `~`, `~user`, `$NAME` and `${NAME}` are expanded as by a shell."""

from __future__ import annotations

import os
import re
import stat
import tempfile
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer

VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|(?P<name>[A-Za-z_]\w*)|\{(?P<braced>[^}]*)\})", re.ASCII)


def expanded(text: str) -> Path:
    """Expand `~`, `~user`, `$NAME` and `${NAME}` in a path; `$$` stands for a dollar sign.

    A `$NAME` that is not a variable is left unchanged if there is a file or folder with that name.

    Raises:
        ValueError: the path is empty, or names a user or a variable that does not exist.
    """
    if not text.strip():
        raise ValueError("the path is empty, perhaps from a shell variable that is not set; name a file or folder")
    if "\0" in text:
        raise ValueError("the path contains a null character; name a file or folder")
    names = [match["name"] or match["braced"] or "" for match in VARIABLE.finditer(text) if not match["dollar"]]
    unknown = [name for name in names if not os.environ.get(name)]
    # Not Path.expanduser: Path("./~x") loses the ./ that marks it as a plain name.
    if unknown and os.path.lexists(written := os.path.expanduser(text)):  # noqa: PTH111
        return Path(written)
    if unknown:
        raise ValueError(f"the variable {unknown[0]} is not set, or empty; set it, or write $$ for a dollar sign")
    path = os.path.expanduser(VARIABLE.sub(_value, text))  # noqa: PTH111
    if path.startswith("~"):
        user = path.split("/")[0]
        raise ValueError(f"there is no home folder {user}; write ./{user} for a name that begins with ~")
    return Path(path)


def _value(match: re.Match[str]) -> str:
    return "$" if match["dollar"] else os.environ[match["name"] or match["braced"]]


def _written(path: Path) -> str:
    """Return the text that `expanded` turns into `path`."""
    text = str(path).replace("$", "$$")
    return f"./{text}" if text.startswith("~") else text


UserPath = Annotated[
    Path,
    BeforeValidator(lambda value: expanded(value) if isinstance(value, str) else value),
    PlainSerializer(_written, return_type=str, when_used="json"),
]
"""Path in a configuration: strings are expanded; JSON dumps are escaped, so that they can be read again."""


def input_path(text: str) -> Path:
    """Expand a path on the command line; an argparse type."""
    try:
        return expanded(text)
    except ValueError as error:
        raise ArgumentTypeError(f"{text!r}: {error}") from None


def output_path(text: str) -> Path:
    """Expand the path of an output file, and check that it can be written before the work begins; an argparse type.

    The path is refused if it exists and is not a regular file, or if its folder is not writable.
    """
    path = input_path(text)
    if text.endswith("/"):
        raise ArgumentTypeError(f"{text!r} names a folder; name a file in it")
    try:
        _require_regular(path)
        _require_writable(path.parent)
    except OSError as error:
        raise ArgumentTypeError(f"{text!r} cannot be written: {error.strerror}; choose another file") from None
    return path


def _require_regular(path: Path) -> None:
    if os.path.lexists(path):
        mode = path.stat().st_mode  # links are followed
        if not stat.S_ISREG(mode):
            what = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
            raise ArgumentTypeError(f"{str(path)!r} exists and is {what}; choose another file")


def _require_writable(folder: Path) -> None:
    """Try to write to the folder, or to the nearest one above it that exists; leave nothing there."""
    there = next(parent for parent in [folder, *folder.parents] if os.path.lexists(parent))
    tempfile.TemporaryFile(dir=there).close()


def model_name(text: str) -> str:
    """Expand the path in the name of a model, such as `runs/mine` or `runs/mine:0`; an argparse type."""
    match = re.fullmatch(r"(.*?)(:\d+)?", text, re.DOTALL)
    assert match, "every text matches"
    return f"{input_path(match[1])}{match[2] or ''}"


def model_names(text: str) -> str:
    """Expand the path in each of several names of models, joined by commas; an argparse type."""
    return ",".join(map(model_name, text.split(",")))
