"""Results of a command: as a table for people, and as JSON for programs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hpcdistill.errors import UserError
from hpcdistill.storage.json_text import to_json
from hpcdistill.storage.whole_file import write_whole


def printable(text: str) -> str:
    """Escape what one line cannot show: line ends, control characters, bytes of file names that are not UTF-8."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table with aligned columns.

    Args:
        rows: cells of each row.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def cell(value: float) -> str:
    """Format a number with four decimals; `-` for NaN, which stands for a value that does not exist."""
    return "-" if math.isnan(value) else f"{value:.4f}"


def print_result(table: str, found: Any, json_file: Path | None) -> None:
    """Print what a command has found, and write it as JSON where a file is named.

    Args:
        table: `found` as text.
        found: a dataclass; its numbers that are not finite become null, since JSON has no NaN.
        json_file: the file to write; None for none.

    Raises:
        UserError: the file cannot be written.
    """
    print(table)
    if json_file is not None:
        write_text(json_file, to_json(asdict(found), indent=2) + "\n", "--json")


def write_text(path: Path, text: str, option: str) -> None:
    """Write a file, and make its folder if there is none.

    Args:
        path: the file.
        text: its content.
        option: the option that named it, for the error message.

    Raises:
        UserError: it cannot be written.
    """
    try:
        write_whole(path, text)
    except OSError as error:
        raise UserError(f"{option} {path} cannot be written: {error.strerror}; choose another file") from None
