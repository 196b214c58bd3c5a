"""Results of a step: facts, tables, and bars that are passed or missed; kept in a file after each addition."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Report:
    """Results of one step.

    Args:
        path: file of the results, as JSON; None for none. A process that is ended still leaves what it had found.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self.facts: dict[str, Any] = {}
        self.bars: list[dict[str, Any]] = []
        self.tables: dict[str, list[dict[str, Any]]] = {}

    def fact(self, name: str, value: Any) -> None:
        """Keep one value."""
        self.facts[name] = value
        self._save()

    def row(self, table: str, **values: Any) -> None:
        """Add a row to a table."""
        self.tables.setdefault(table, []).append(values)
        self._save()

    def bar(self, name: str, value: Any, wanted: str, passed: bool) -> None:
        """Judge a value: `wanted` says what it should be."""
        self.bars.append({"bar": name, "value": value, "wanted": wanted, "passed": bool(passed)})
        self._save()

    def at_most(self, name: str, value: float, limit: float) -> None:
        """Judge a value that should be at most `limit`; NaN is not."""
        self.bar(name, value, f"≤ {limit:g}", value <= limit)

    def at_least(self, name: str, value: float, limit: float) -> None:
        """Judge a value that should be at least `limit`; NaN is not."""
        self.bar(name, value, f"≥ {limit:g}", value >= limit)

    @property
    def as_dict(self) -> dict[str, Any]:
        """All results, as JSON values."""
        return {"facts": self.facts, "bars": self.bars, "tables": self.tables}

    def add(self, results: dict[str, Any]) -> None:
        """Add the results of another report, from its `as_dict`."""
        self.facts |= results.get("facts", {})
        self.bars += results.get("bars", [])
        for table, rows in results.get("tables", {}).items():
            self.tables.setdefault(table, []).extend(rows)
        self._save()

    def _save(self) -> None:
        if self._path is not None:
            unfinished = self._path.with_suffix(".part")
            unfinished.write_text(json.dumps(self.as_dict, default=str))
            unfinished.replace(self._path)
