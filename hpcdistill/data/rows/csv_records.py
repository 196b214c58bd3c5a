"""Records of CSV: their ends, and bad lines.

A record spans several lines if a quoted value does. Where a line breaks the rules, only that line is bad, and parsing
continues after it: a missing quote never joins parts of several records.
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
    """Good records of a text, and its bad lines."""

    text: bytes
    """Concatenated good records."""
    lines: Array
    """int64 [records], number of the first line of each record in the original text, from 0."""
    bad: list[tuple[int, str, bytes]]
    """Number, error and text of each bad line."""


class Grammar:
    """Rules of CSV with a delimiter of one character.

    A value that has line ends, delimiters or quotes is quoted, and its quotes are doubled. Spaces around quotes are
    ignored. In a value that does not begin with a quote, quotes are ordinary characters.
    """

    def __init__(self, delimiter: str) -> None:
        self._delimiter = delimiter.encode()
        mark, quoted = re.escape(self._delimiter), rb' *"[^"]*(?:""[^"]*)*'
        cell = rb'(?:%s" *|(?! *")[^%s\n\r]*)' % (quoted, mark)
        self._cell = re.compile(rb"(?:\A|%s)(%s)" % (mark, cell))
        self._record = re.compile(rb"%s(?:%s%s)*(?:\r?\n|\Z)" % (cell, mark, cell))
        self._open = re.compile(rb"(?:%s%s)*%s\Z" % (cell, mark, quoted))

    def whole(self, text: bytes) -> int:
        """Return the number of bytes at the beginning of `text` that are whole records."""
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
                break  # its value may end after the text
            if text[stop - 1] == LINE_END:
                end = stop
        return end

    def first(self, text: bytes) -> int:
        """Return the number of bytes of the first record, with the blank lines before it."""
        return next((end for _, end, record in self._scan(text) if record is None or record.strip()), len(text))

    def cells(self, record: bytes) -> list[bytes]:
        """Return the values of a record, with their quotes."""
        return [cell.strip(b" ") for cell in self._cell.findall(record)]

    def is_plain(self, text: bytes) -> bool:
        """Return whether all parsers of CSV find the same records in a text; others are for `read`."""
        return b"\r" not in text and (QUOTE not in text or self._is_regular(text))

    def locate(self, text: bytes) -> Array:
        """Return the number of the first line of each record of a plain text, without blank ones, int64 [records]."""
        lines = _places(text, LINE_END)
        ends = lines if text.endswith(b"\n") else np.append(lines, len(text))
        if QUOTE in text:
            ends = ends[np.searchsorted(_places(text, QUOTE), ends) % 2 == 0]
        begins = np.concatenate([[0], ends[:-1] + 1])
        return np.searchsorted(lines, begins[begins < ends])

    def read(self, text: bytes, columns: int) -> Records:
        """Split a text into good records, which are UTF-8 with `columns` values, and bad lines; skip blank ones."""
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
        """Yield begin, end and text of each record; for a line that begins no record, None as text."""
        begin = 0
        while begin < len(text):
            match = self._record.match(text, begin)
            end = match.end() if match else text.find(b"\n", begin) + 1 or len(text)
            yield begin, end, match and match[0]
            begin = end

    def _is_regular(self, text: bytes) -> bool:
        """Return whether each quote opens or closes a value or is doubled, so that the text is unambiguous."""
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
