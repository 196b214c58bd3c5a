"""Tables in CSV files: the names of their columns, and blocks of rows."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.csv

from hpcdistill.data.prepare.lines import Block, count_lines, head, quote, read_blocks
from hpcdistill.data.rows.chunk import MISSING_WORDS, Chunk
from hpcdistill.data.rows.columns import Column
from hpcdistill.data.rows.csv_records import AS_UTF8, Grammar
from hpcdistill.errors import UserError

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
TEXT, NUMBERS = pyarrow.string(), pyarrow.float64()
UNNAMED = "Unnamed: 0"  # name of an index that pandas has written and read as a column
SAMPLE_RECORDS = 100  # records from which the delimiter is detected


class CsvTable:
    """CSV files with the same columns.

    Attributes:
        names: names of all columns.
        types: empty, as CSV has no types.
        index: names of columns that number the rows.

    Raises:
        UserError: a file cannot be read, is not text, or has other columns than the first.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files
        self.types: dict[str, pyarrow.DataType] = {}
        text = _text(files[0])
        self.delimiter = _delimiter(text)
        self._grammar = Grammar(self.delimiter)
        if self.delimiter != ",":
            print(f"values are separated by {DELIMITERS[self.delimiter]}")
        self.names = self._header(files[0], text)
        self.index = self.names[:1] if self.names[0] == UNNAMED else []
        for file in files[1:]:
            if (names := self._header(file, _text(file))) != self.names:
                raise UserError(
                    f"{file} has the columns {', '.join(names)}, and {files[0]} {', '.join(self.names)}; files that "
                    "are prepared together must have the same ones"
                )

    def tasks(self) -> Iterator[Block]:
        """Yield the blocks of the files, for `read`; show a progress bar."""
        return read_blocks(self.files, self._grammar.whole)

    def sample(self, columns: Sequence[Column]) -> Chunk:
        """Read columns from the beginning of the first file, as text."""
        text = _text(self.files[0])
        text = text[: self._grammar.whole(text) or len(text)]
        names = [column.name for column in columns]
        return self._read(dict.fromkeys(names, TEXT), Block(self.files[0], 1, 0, 0, len(text), text))

    def read(self, label: str, columns: Sequence[Column], block: Block) -> Chunk:
        """Read the label and other columns of a block; words for a missing value become null.

        Columns are text; dense columns are float64 if no dense column of the block has an odd value.
        """
        dense = {column.name: NUMBERS if column.kind == "dense" else TEXT for column in columns}
        return self._read({label: TEXT, **dense}, block)

    def _read(self, types: dict[str, pyarrow.DataType], block: Block) -> Chunk:
        """Read columns of these types, or all as text if a value has another type."""
        text = block.read()
        if b"\r" in text:
            text = text.replace(b"\r\n", b"\n")
        skip = self._grammar.first(text) if block.line == 1 else 0  # the names
        before, text = text.count(b"\n", 0, skip), text[skip:]
        table, bad, texts = None, list[tuple[int, str, bytes]](), dict.fromkeys(types, TEXT)
        if self._grammar.is_plain(text) and _is_utf8(text):
            table = self._parse(types, text) or self._parse(texts, text)
        if table is None:
            text, lines, bad = self._grammar.read(text, len(self.names))
            table = self._parse(texts, text)
            assert table is not None
        elif table.num_rows == count_lines(text):
            lines = np.arange(table.num_rows)
        else:
            lines = self._grammar.locate(text)
        return Chunk(
            columns=[column.combine_chunks() for column in table.columns],
            numbers=block.row + before + lines,
            file=block.file,
            lines=block.line + before + lines,
            bad=[
                (block.line + before + line, quote(block.file, block.line + before + line, fault, bytes_))
                for line, fault, bytes_ in bad
            ],
        )

    def _parse(self, types: dict[str, pyarrow.DataType], text: bytes) -> pyarrow.Table | None:
        """Return columns of these types; None if a value has another type, or a record another number of values."""
        if not text or text.isspace():
            return pyarrow.table({name: pyarrow.array([], type_) for name, type_ in types.items()})
        numbers = {name: str(number) for number, name in enumerate(self.names)}  # as some have no names
        types = {numbers[name]: type_ for name, type_ in types.items()}
        try:
            return pyarrow.csv.read_csv(
                pyarrow.BufferReader(text),
                pyarrow.csv.ReadOptions(
                    use_threads=False, block_size=len(text) + 1, column_names=list(map(str, range(len(self.names))))
                ),
                pyarrow.csv.ParseOptions(delimiter=self.delimiter, newlines_in_values=True),
                pyarrow.csv.ConvertOptions(
                    check_utf8=False,
                    column_types=types,
                    include_columns=list(types),
                    null_values=MISSING_WORDS,
                    strings_can_be_null=True,
                ),
            )
        except pyarrow.ArrowInvalid:
            return None

    def _header(self, file: Path, text: bytes) -> list[str]:
        record = text[: self._grammar.first(text)].strip(b"\r\n")
        try:
            names = next(csv.reader(io.StringIO(record.decode()), delimiter=self.delimiter, strict=True))
        except UnicodeDecodeError as error:
            raise UserError(f"{file} line 1 should have the names of the columns: {error}; {AS_UTF8}") from None
        except (ValueError, csv.Error, StopIteration) as error:
            raise UserError(f"{file} line 1 should have the names of the columns: {error}; check --input") from None
        return [name.strip() for name in names]


def _text(file: Path) -> bytes:
    text = head(file)
    if not text.strip():
        raise UserError(f"{file} is not a file with lines in it; check --input")
    if b"\0" in text:
        raise UserError(
            f"{file} is not CSV in UTF-8: it holds zero bytes, as UTF-16, spreadsheets and other binary files do; save "
            "it as CSV in UTF-8"
        )
    if b"\n" not in text and b"\r" in text:
        raise UserError(f"{file} has lines that end in carriage returns only; convert them: tr '\\r' '\\n' < FILE")
    return text


def _delimiter(text: bytes) -> str:
    """Return the delimiter that splits the first records into equal numbers of values, more than one."""

    def fit(delimiter: str) -> tuple[float, int]:
        grammar, widths, begin = Grammar(delimiter), list[int](), 0
        while begin < len(text) and len(widths) < SAMPLE_RECORDS:
            end = begin + grammar.first(text[begin : begin + (1 << 16)])
            widths.append(len(grammar.cells(text[begin:end].lstrip(b"\r\n"))))
            begin = end
        return float(np.mean([width == widths[0] > 1 for width in widths])), widths[0]

    return max(DELIMITERS, key=fit)


def _is_utf8(text: bytes) -> bool:
    try:
        return text.isascii() or bool(text.decode())
    except UnicodeDecodeError:
        return False
