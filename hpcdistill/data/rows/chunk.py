"""Rows of a table as they are read, before it is clear what its columns are."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow

from hpcdistill.data.arrays import Array

MISSING_WORDS = [
    *["", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA"],
    *["NULL", "NaN", "None", "n/a", "nan", "null"],  # so far those of pandas
    *["?", r"\N", "NaT", "Null"],
]
"""Words that stand for a missing value in text."""


@dataclass
class Chunk:
    """Rows of a table, column by column."""

    columns: list[pyarrow.Array]
    """Columns that were asked for, in that order; null where a value is missing."""
    numbers: Array
    """int64 [rows], the number of each row, which no other row of the input has."""
    file: Path
    lines: Array
    """int64 [rows], where each row begins in the file, from 1."""
    unit: str = "line"
    """Name of what `lines` counts."""
    bad: list[tuple[int, str]] = field(default_factory=list)
    """Place and quotation of what is no row."""

    def place(self, row: int) -> str:
        """Return where a row comes from, in words."""
        return f"{self.file.name} {self.unit} {self.lines[row]}"

    def at(self, mask: Array) -> Chunk:
        """Return the rows that a mask selects."""
        columns = [column.filter(pyarrow.array(mask)) for column in self.columns]
        return replace(self, columns=columns, numbers=self.numbers[mask], lines=self.lines[mask])
