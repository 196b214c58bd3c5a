"""Rows of a table as read from a file, before the kinds of its columns are known."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow

from hpcdistill.data.arrays import Array

MISSING_WORDS = [
    *["", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA"],
    *["NULL", "NaN", "None", "n/a", "nan", "null"],  # the words of pandas end here
    *["?", r"\N", "NaT", "Null"],
]
"""Words for a missing value in text."""


@dataclass
class Chunk:
    """Rows of a table, column by column."""

    columns: list[pyarrow.Array]
    """Requested columns, in the requested order; missing values are null."""
    numbers: Array
    """int64 [rows], unique numbers of the rows in the input."""
    file: Path
    lines: Array
    """int64 [rows], position of each row in the file, from 1."""
    unit: str = "line"
    """Unit of `lines`, for messages."""
    bad: list[tuple[int, str]] = field(default_factory=list)
    """Position and quotation of each bad row."""

    def place(self, row: int) -> str:
        """Return the place of a row in its file, for messages."""
        return f"{self.file.name} {self.unit} {self.lines[row]}"

    def at(self, mask: Array) -> Chunk:
        """Return the rows that a mask selects."""
        columns = [column.filter(pyarrow.array(mask)) for column in self.columns]
        return replace(self, columns=columns, numbers=self.numbers[mask], lines=self.lines[mask])
