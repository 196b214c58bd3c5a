"""What a command has found: as a table for people, and as JSON for other programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpcdistill.errors import UserError


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table, from its rows of cells."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def write_json(path: Path, found: Any) -> None:
    """Write what JSON can express; what has no value is null, never NaN.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(f"--json {path} cannot be written: {error.strerror}; choose another file") from None
