"""Columns of a table: dense ones are numbers, which are standardized; categorical ones have ids.

In a typed file, the type decides. A column of text is dense if at most `ODD_SHARE` of its values are not numbers; those
and infinite values are then missing, like null and `MISSING_WORDS`.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow
import pyarrow.compute
from pyarrow import types

from hpcdistill.data.arrays import Array
from hpcdistill.data.prepare.split import hash_texts
from hpcdistill.data.rows.chunk import MISSING_WORDS, Chunk
from hpcdistill.errors import UserError

ODD_SHARE = 0.05
MISSING = -1
PROBE = 1000  # values that are checked before all are
NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
NO_NUMBER = [".", "-", "--", *sorted({word.casefold() for word in MISSING_WORDS})]
"""Words for a missing value in dense columns only, in any case: in others they may be categories."""
INFINITE = [sign + word for sign in ("", "+", "-") for word in ("inf", "infinity")]
# Numbers as people write them, with thousands separators, units of money and percent; dates and times.
FORMATTED = (
    r"^[-+(]?\s*\p{Sc}?\s*[-+]?\d[\d.,'\s\x{a0}\x{202f}]*(%|\p{Sc}|[A-Z]{3})?\)?$"
    r"|^\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([T ]+[\d:.]+ ?([AaPp][Mm]|Z|[+-][\d:]+)?)?$|^\d{1,2}:\d{2}(:[\d.]+)?$"
)
QUOTED = 60  # characters of a value that are quoted
SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}

Kind = Literal["dense", "categorical"]


class Column(NamedTuple):
    """Column that becomes a feature."""

    name: str
    kind: Kind
    said_by: Literal["user", "file", None]
    """Source of the kind: the user's options, or the type in the file; None if the values decide."""


@dataclass
class Seen:
    """Counts and examples of a column's values."""

    numbers: int = 0
    """Number of finite values."""
    infinite: int = 0
    infinite_one: str = ""
    """Place of the first infinite value."""
    odd: int = 0
    """Number of values that are neither numbers nor missing."""
    formatted: int = 0
    """Number of odd values that look like numbers or dates in another notation."""
    odd_one: str = ""
    """First odd value, with its place."""
    formatted_one: str = ""
    repeated: int = 0
    """Number of pieces in which numbers are fractional or repeated, so that they are not ids."""
    least: float = np.inf
    greatest: float = -np.inf

    def add(self, other: Seen) -> None:
        """Add the counts of the values that follow."""
        for name in ("numbers", "infinite", "odd", "formatted", "repeated"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("infinite_one", "odd_one", "formatted_one"):
            setattr(self, name, getattr(self, name) or getattr(other, name))
        self.least, self.greatest = min(self.least, other.least), max(self.greatest, other.greatest)

    @property
    def is_of_numbers(self) -> bool:
        """True if nearly all values are numbers, or there are no values."""
        return self.odd <= ODD_SHARE * (self.numbers + self.infinite + self.odd)


def kind_of_type(name: str, type_: pyarrow.DataType, file: Any) -> Kind | None:
    """Return the kind of a column of this type; None if the type does not decide.

    Raises:
        UserError: the type is neither a number nor a category.
    """
    if types.is_null(type_):
        return None
    if types.is_dictionary(type_) and kind_of_type(name, type_.value_type, file):
        return "categorical"
    if types.is_boolean(type_) or _is_text(type_) or _is_binary(type_):
        return "categorical"
    if types.is_integer(type_) or types.is_floating(type_) or types.is_decimal(type_):
        return "dense"
    if types.is_temporal(type_) and not types.is_interval(type_):
        return "dense"
    raise UserError(
        f"column {name!r} of {file} has the type {type_}, which is neither a number nor a category; leave it out with "
        f"--drop {name!r}"
    )


class Numbers(NamedTuple):
    """Column that is read as numbers."""

    values: Array
    """float64 [rows]; missing values are NaN."""
    seen: Seen


def read_numbers(chunk: Chunk, column: pyarrow.Array) -> Numbers:
    """Convert a column of any type to numbers; times are in seconds."""
    seen = Seen()
    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if types.is_boolean(column.type):
        column = column.cast(pyarrow.int8())
    if _is_text(column.type) or _is_binary(column.type):
        values = _parse_numbers(chunk, column, seen)
    else:
        values = _as_float64(column)
    finite = np.isfinite(values)
    seen.numbers = int(finite.sum())
    if seen.numbers < len(values):
        infinite = np.isinf(values)
        seen.infinite = int(infinite.sum())
        if seen.infinite:
            seen.infinite_one = chunk.place(int(infinite.argmax()))
        values = np.where(finite, values, np.nan)
    if seen.numbers:
        known = values if seen.numbers == len(values) else values[finite]
        seen.least, seen.greatest = float(known.min()), float(known.max())
        seen.repeated = int(not (_are_ids(known[:PROBE]) and _are_ids(known)))
    return Numbers(values, seen)


def _are_ids(values: Array) -> bool:
    return bool((values == np.floor(values)).all() and len(np.unique(values)) == len(values))


def _as_float64(column: pyarrow.Array) -> Array:
    type_, scale = column.type, 1.0
    if types.is_date32(type_):
        column, scale = column.cast(pyarrow.int32()), 86400.0
    elif types.is_temporal(type_):
        scale = SECONDS[getattr(type_, "unit", "ms")]  # date64 has none
        column = column.cast(pyarrow.int32() if type_.bit_width == 32 else pyarrow.int64())
    elif types.is_decimal(type_):
        column = column.cast(pyarrow.float64())
    elif types.is_null(type_):
        return np.full(len(column), np.nan)
    values: Array = column.to_numpy(zero_copy_only=False).astype(np.float64, copy=False)
    return values if scale == 1 else values * scale


def _parse_numbers(chunk: Chunk, column: pyarrow.Array, seen: Seen) -> Array:
    """Parse text as numbers; all at once if there is nothing else in it."""
    with suppress(pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError):  # odd values; bytes
        return _as_float64(column.cast(pyarrow.float64()))
    text = as_texts(column)
    number, infinite, odd = classify_numbers(text)
    seen.odd = int(odd.sum())
    if seen.odd:
        row = int(odd.argmax())
        seen.odd_one = _quote(chunk, text[row], row)
    none = pyarrow.scalar(None, text.type)
    return _as_float64(pyarrow.compute.if_else(pyarrow.array(number | infinite), text, none).cast(pyarrow.float64()))


def as_texts(values: pyarrow.Array) -> pyarrow.Array:
    """Convert values of any type to text without spaces around it; null stays null."""
    if _is_binary(values.type):
        values = values.cast(pyarrow.binary())
    try:
        texts = values.cast(pyarrow.string())
    except pyarrow.ArrowInvalid:  # bytes that are not UTF-8
        texts = pyarrow.array([value and value.decode(errors="backslashreplace") for value in values.to_pylist()])
    return pyarrow.compute.utf8_trim_whitespace(texts)


def is_missing(texts: pyarrow.Array) -> Array:
    """Return a mask of the texts that are null or a word for a missing value, bool."""
    words = pyarrow.compute.is_in(texts, pyarrow.array(MISSING_WORDS))
    result: Array = pyarrow.compute.or_(words, texts.is_null()).to_numpy(zero_copy_only=False)
    return result


def classify_numbers(text: pyarrow.Array) -> tuple[Array, Array, Array]:
    """Return masks of the texts that are finite numbers, infinite numbers, and odd: neither, and not missing."""
    number, lower = _matches(text, NUMBER), pyarrow.compute.utf8_lower(text)
    infinite, missing = (
        pyarrow.compute.is_in(lower, pyarrow.array(words)).to_numpy(zero_copy_only=False)
        for words in (INFINITE, NO_NUMBER)
    )
    known = text.is_valid().to_numpy(zero_copy_only=False)
    return number, infinite, known & ~number & ~infinite & ~missing


def _mostly(texts: pyarrow.Array, expression: str) -> bool:
    """Return whether at least half of the first texts match."""
    probe = texts[:PROBE]
    return bool(2 * _matches(probe, expression).sum() >= len(probe))


def _matches(text: pyarrow.Array, expression: str) -> Array:
    matches = pyarrow.compute.match_substring_regex(text, expression).fill_null(False)
    result: Array = matches.to_numpy(zero_copy_only=False)
    return result


class Categories(NamedTuple):
    """Column that is read as categories."""

    codes: Array
    """int32 [rows], indices into `hashes`."""
    hashes: Array
    """int64 [different values], `MISSING` for missing values; two hashes may be equal."""
    seen: Seen


def read_categories(chunk: Chunk, column: pyarrow.Array, is_chosen: bool = False) -> Categories:
    """Convert a column of any type to categories; values are equal if their texts without spaces around are.

    Args:
        chunk: rows of the column, for messages.
        column: the column.
        is_chosen: the column has been declared categorical; its values are counted only if most look like numbers.
    """
    if not types.is_dictionary(column.type):
        column = column.dictionary_encode()
    texts, was_text = as_texts(column.dictionary), _is_text(column.type.value_type)
    hashes = np.where(is_missing(texts), MISSING, hash_texts(texts))
    codes = column.indices.fill_null(len(hashes)).to_numpy().astype(np.int32, copy=False)
    seen = Seen()
    if was_text and (not is_chosen or _mostly(texts, f"{NUMBER}|{FORMATTED}")):
        seen = _count_numbers(chunk, texts, hashes != MISSING, codes)
    return Categories(codes, np.append(hashes, MISSING), seen)


def _count_numbers(chunk: Chunk, texts: pyarrow.Array, known: Array, codes: Array) -> Seen:
    """Count the rows whose text may have been meant as a number."""
    rows = np.bincount(codes, minlength=len(texts) + 1)[:-1]
    number, infinite, odd = (mask & known for mask in classify_numbers(texts))
    formatted = np.zeros_like(odd)
    if _mostly(texts, FORMATTED):  # otherwise the count is not used: see `column_warnings.py`
        formatted = odd & _matches(texts, FORMATTED)
    seen = Seen()
    for name, mask in (("numbers", number), ("infinite", infinite), ("odd", odd), ("formatted", formatted)):
        setattr(seen, name, int(rows[mask].sum()))
    for name, mask in (("odd_one", odd), ("formatted_one", formatted)):
        if mask.any():
            row = int(np.append(mask, False)[codes].argmax())
            setattr(seen, name, _quote(chunk, texts[int(codes[row])], row))
    return seen


def _quote(chunk: Chunk, text: pyarrow.StringScalar, row: int) -> str:
    value = text.as_py()
    return f"{value[:QUOTED]!r}{'…' * (len(value) > QUOTED)} ({chunk.place(row)})"


def _is_text(type_: pyarrow.DataType) -> bool:
    return bool(types.is_string(type_) or types.is_large_string(type_) or types.is_string_view(type_))


def _is_binary(type_: pyarrow.DataType) -> bool:
    return bool(
        types.is_binary(type_)
        or types.is_large_binary(type_)
        or types.is_binary_view(type_)
        or types.is_fixed_size_binary(type_)
    )
