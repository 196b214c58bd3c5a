"""Records of CSV: where one ends, and which are none.

A record goes over several lines where a quoted value does. What breaks the rules costs its first line only, and what
comes behind is read anew: so no record is made of pieces of others, wherever a quote is missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from hpcdistill.data.arrays import Array

AS_UTF8 = "save the file as UTF-8: iconv -f latin1 -t utf-8"
QUOTE, LINE_END = ord('"'), ord("\n")


class Records(NamedTuple):
    """The good records of a text, and what in it is none."""

    text: bytes
    """All good records, one after the other."""
    lines: Array
    """int64 [records], the number of each one's first line in the original text, from 0."""
    bad: list[tuple[int, str, bytes]]
    """Number, fault and text of each bad line."""


class Grammar:
    """Rules of CSV with a delimiter, one character.

    A value with line ends, delimiters or quotes in it is quoted, and a quote in it doubled. Spaces around the quotes
    are passed over. In a value that does not begin with a quote, quotes are characters like any other.
    """

    def __init__(self, delimiter: str) -> None:
        self._delimiter = delimiter.encode()
        mark, quoted = re.escape(self._delimiter), rb' *"[^"]*(?:""[^"]*)*'
        cell = rb'(?:%s" *|(?! *")[^%s\n\r]*)' % (quoted, mark)
        self._cell = re.compile(rb"(?:\A|%s)(%s)" % (mark, cell))
        self._record = re.compile(rb"%s(?:%s%s)*(?:\r?\n|\Z)" % (cell, mark, cell))
        self._open = re.compile(rb"(?:%s%s)*%s\Z" % (cell, mark, quoted))

    def whole(self, text: bytes) -> int:
        """Return how many bytes of `text`, from its begin, are whole records."""
        end = text.rfind(b"\n") + 1
        if QUOTE not in text:
            return end
        quotes = _places(text, QUOTE)
        while (count := np.searchsorted(quotes, end)) % 2:
            end = text.rfind(b"\n", 0, quotes[count - 1]) + 1
        if end and self._is_regular(text[:end]):
            return end
        end = 0
        for begin, stop, record in self._scan(text):
            if record is None and self._open.match(text, begin):
                break  # its value may end behind the text
            if text[stop - 1] == LINE_END:
                end = stop
        return end

    def first(self, text: bytes) -> int:
        """Return how many bytes the first record has, with the blank lines before it."""
        return next((end for _, end, record in self._scan(text) if record is None or record.strip()), len(text))

    def cells(self, record: bytes) -> list[bytes]:
        """Return the values of a record, with their quotes."""
        return [cell.strip(b" ") for cell in self._cell.findall(record)]

    def is_plain(self, text: bytes) -> bool:
        """Tell whether all readers of CSV see the same records in a text; `read` has its own view of others."""
        return b"\r" not in text and (QUOTE not in text or self._is_regular(text))

    def locate(self, text: bytes) -> Array:
        """Return the number of the first line of each record that is not blank, int64 [records], of a plain text."""
        lines = _places(text, LINE_END)
        ends = lines if text.endswith(b"\n") else np.append(lines, len(text))
        if QUOTE in text:
            ends = ends[np.searchsorted(_places(text, QUOTE), ends) % 2 == 0]
        begins = np.concatenate([[0], ends[:-1] + 1])
        return np.searchsorted(lines, begins[begins < ends])

    def read(self, text: bytes, columns: int) -> Records:
        """Tell the records that have so many columns, all of them UTF-8, from what is none; blank ones are neither."""
        good, lines, bad, line = [], list[int](), list[tuple[int, str, bytes]](), 0
        for begin, end, record in self._scan(text):
            if record is None:
                bad.append((line, _fault(text[begin:end]), text[begin:end]))
            elif record.strip():
                cells = self.cells(record)
                if len(cells) != columns:
                    bad.append((line, f"{len(cells)} columns instead of {columns}", record))
                elif fault := _not_utf8(record):
                    bad.append((line, fault, record))
                else:
                    good.append(self._delimiter.join(cells))
                    lines.append(line)
            line += text.count(b"\n", begin, end)
        return Records(b"\n".join(good), np.array(lines, np.int64), bad)

    def _scan(self, text: bytes) -> Iterator[tuple[int, int, bytes | None]]:
        """Yield begin, end and text of each record; of a line that begins none, None instead of the text."""
        begin = 0
        while begin < len(text):
            match = self._record.match(text, begin)
            end = match.end() if match else text.find(b"\n", begin) + 1 or len(text)
            yield begin, end, match and match[0]
            begin = end

    def _is_regular(self, text: bytes) -> bool:
        """Tell whether quotes open and close values, or are doubled, wherever they are: there is no other reading."""
        around = b"\n" + text + b"\n"
        quotes = _places(around, QUOTE)
        if len(quotes) % 2:
            return False
        characters = np.frombuffer(around, np.uint8)
        neighbours = np.array([ord(self._delimiter), LINE_END, QUOTE], np.uint8)
        return bool(
            np.isin(characters[quotes[::2] - 1], neighbours).all()
            and np.isin(characters[quotes[1::2] + 1], neighbours).all()
        )


def _places(text: bytes, character: int) -> Array:
    return np.flatnonzero(np.frombuffer(text, np.uint8) == character)


def _fault(line: bytes) -> str:
    if QUOTE not in line:
        return "a carriage return that ends no line"
    return "a quoted value is not closed, or a quote in it not doubled"


def _not_utf8(record: bytes) -> str:
    try:
        record.decode()
    except UnicodeDecodeError as error:
        return f"{error} ({AS_UTF8})"
    return ""
