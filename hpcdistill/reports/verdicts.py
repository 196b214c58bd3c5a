"""Verdicts on codistilled runs, from their burn-in: sentences for people, and tables for a page."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpcdistill.errors import UserError
from hpcdistill.planning.plan import Plan, plan
from hpcdistill.reports.page import table
from hpcdistill.reports.tables import printable
from hpcdistill.storage.metrics import GroupMetrics, read_run


@dataclass(frozen=True)
class RunVerdict:
    """Verdict on one run."""

    run: Path
    plan: Plan | None
    """None if the burn-in does not suffice."""
    sentences: list[str]

    def lines(self, named: bool) -> list[str]:
        """Return the sentences, the first with the name of the run if `named`."""
        first, *others = map(printable, self.sentences)
        return [f"{printable(self.run.absolute().name)}: {first}" if named else first, *others]

    def tables(self, named: bool) -> Iterator[str]:
        """Yield the HTML of the plan's tables, with the name of the run in their title if `named`."""
        if self.plan is None:
            return
        titles, *rows = self.plan.table()
        name = f" {html.escape(printable(self.run.absolute().name))}" if named else ""
        note = f"To a validation loss of {self.plan.loss} nats per {printable(self.plan.unit)}"
        yield f"<h2>More workers, or another group?{name}</h2>"
        yield table(titles, rows, f"{note}; batch per group; 95 % intervals in brackets.")
        yield table(["input", "value", "origin"], [source.cells() for source in self.plan.inputs], "")


def read_verdicts(runs: Sequence[Path]) -> list[RunVerdict]:
    """Return a verdict on each of `runs` whose groups learn from each other.

    Raises:
        UserError: a folder holds no metrics.
    """
    return [_verdict(run) for run in runs if _is_codistilled(read_run(run)[0])]


def _verdict(run: Path) -> RunVerdict:
    try:
        found = plan([run])
    except UserError as error:
        return RunVerdict(run, None, [f"No verdict on more workers or another group: {error}."])
    return RunVerdict(run, found, found.verdict.sentences())


def _is_codistilled(metrics: GroupMetrics) -> bool:
    if metrics.fact("config.groups") == 1 or metrics.fact("config.codistill.teachers") != "peers":
        return False
    return bool(metrics.fact("config.codistill.weight"))
