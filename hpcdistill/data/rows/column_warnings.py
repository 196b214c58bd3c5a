"""Warnings about the columns of a table, once it is prepared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hpcdistill.data.rows.columns import Column, Seen
from hpcdistill.data.rows.encoding import Found

MANY = 20  # values that are hardly all different by chance
MOST = 0.95
SHOWN = 10


def column_warnings(columns: Sequence[Column], found: Found) -> Iterator[str]:
    """Yield a warning for each column with values of another kind, and for columns without information."""
    dense, categorical = iter(found.moments), iter(found.counts)
    constant, different = [], []
    for column, of in zip(columns, found.seen, strict=True):
        if column.kind == "dense":
            yield from _of_numbers(column, of)
            if next(dense).deviation == 0:
                constant.append(column.name)
            elif not of.repeated and MANY <= of.numbers <= of.greatest - of.least + 1:
                different.append(column.name)
        else:
            counts = next(categorical)
            unlike, total = counts.summary()
            if column.said_by != "user":
                yield from _of_categories(column.name, of, unlike)
            if not unlike or (unlike == 1 and not counts.missing):
                constant.append(column.name)
            elif MANY <= unlike == total:
                different.append(column.name)
    if constant:
        yield f"the same value in every row, and so no information: {_listed(constant)}"
    if different:
        yield f"a different value in every row, like an id, from which nothing can be learned: {_listed(different)}"


def _of_numbers(column: Column, seen: Seen) -> Iterator[str]:
    name, remedy = column.name, f". If it has categories: --categorical {column.name!r}"
    total = seen.numbers + seen.infinite + seen.odd
    if seen.odd:
        yield (
            f"column {name!r} is dense; {seen.odd:,} of its {total:,} values are not numbers and count as missing; the "
            f"first is {seen.odd_one}{'' if column.said_by == 'user' else remedy}"
        )
    if seen.infinite:
        yield (
            f"column {name!r} is dense; {seen.infinite:,} infinite values of {total:,} count as missing, the first in "
            f"{seen.infinite_one}"
        )


def _of_categories(name: str, seen: Seen, different: int) -> Iterator[str]:
    total, numbers = seen.numbers + seen.infinite + seen.odd, seen.numbers + seen.infinite
    if different >= MANY and seen.formatted and numbers + seen.formatted >= MOST * total:
        yield (
            f"column {name!r} is categorical, with {different:,} categories; its values look like numbers or "
            f"dates in a notation that is not read, as {seen.formatted_one}. Write them as plain numbers, or leave "
            f"them out: --drop {name!r}"
        )
    elif numbers > total / 2 and different >= MANY:
        yield (
            f"column {name!r} is categorical, though {numbers:,} of its {total:,} values are numbers"
            f"{f', but not {seen.odd_one}' if seen.odd else ''}. To take it for numbers, and what is none for missing: "
            f"--dense {name!r}"
        )


def _listed(names: Sequence[str]) -> str:
    listed = ", ".join(map(repr, names[:SHOWN])) + ", …" * (len(names) > SHOWN)
    return f"{listed}. To leave out: --drop {' '.join(names[:SHOWN])}"
