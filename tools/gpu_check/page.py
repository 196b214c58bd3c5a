"""Page of a command's results, as Markdown."""

from __future__ import annotations

from typing import Any


def page(results: dict[str, Any]) -> str:
    """Return the page of one command: its steps, all bars, then facts and tables of each step."""
    steps: list[dict[str, Any]] = results["steps"]
    bars = [{"step": step["name"], **bar} for step in steps for bar in step.get("bars", [])]
    parts = [
        f"# gpu_check {results['command']}",
        f"{results['note']} {_count(bars)}",
        "## Steps",
        _table([{key: step.get(key, "") for key in ("name", "status", "seconds", "note")} for step in steps]),
        "## Bars",
        _table([bar | {"passed": "pass" if bar["passed"] else "**FAIL**"} for bar in bars]) or "None was reached.",
    ]
    for step in steps:
        facts, tables = step.get("facts", {}), step.get("tables", {})
        if facts or tables:
            parts.append(f"## {step['name']}")
        if facts:
            parts.append("\n".join(f"- {name}: {_cell(value)}" for name, value in facts.items()))
        for name, rows in tables.items():
            parts += [f"### {name}", _table(rows)]
    return "\n\n".join(parts) + "\n"


def _count(bars: list[dict[str, Any]]) -> str:
    missed = [f"{bar['step']}: {bar['bar']}" for bar in bars if not bar["passed"]]
    return f"{len(bars) - len(missed)} of {len(bars)} bars passed" + (
        f"; missed: {'; '.join(missed)}." if missed else "."
    )


def _table(rows: list[dict[str, Any]]) -> str:
    """Return rows with any keys as a table; a key that a row lacks is an empty cell."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns), *([_cell(row.get(column, "")) for column in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if rows else ""


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "\\|").replace("\n", " ")
