"""Measurement of the text of files, before it is split into parts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from tqdm import tqdm

from hpcdistill.data.prepare.folder import PassedOver
from hpcdistill.data.prepare.pieces import Run, in_tasks
from hpcdistill.data.tokens.documents import READ_BYTES, NotUTF8Error, documents_of, read_documents
from hpcdistill.data.tokens.files import TextFile
from hpcdistill.data.tokens.formats import TEXT, NotTextError, kind_of
from hpcdistill.data.tokens.parts import Source, is_chosen
from hpcdistill.data.tokens.records import Block, read_blocks

TASK_BYTES = 1 << 20  # measured by a process at a time


class Measured(NamedTuple):
    """Text of a file, or of a block of its records, and what is wrong with it."""

    number: int
    """Number of the file among those that are measured."""
    documents: int = 0
    size: int = 0
    chosen: int = 0
    """These three are as in `Source`."""
    quotes: Sequence[str] = ()
    """Lines that describe bad records."""
    fault: str | None = None
    """Reason to leave the file out, as in `NotTextError`; empty if it is not UTF-8, which is a bad record."""


def measure(
    files: Collection[TextFile],
    column: str | None,
    bad: Callable[[str], None],
    passed_over: PassedOver,
    is_utf8: bool = False,
    run: Run = map,
) -> list[Source]:
    """Read files to measure their text; show a progress bar.

    Args:
        files: the files.
        column: field of the records that has the text.
        bad: function that is called for each record without text; see `read_documents`.
        passed_over: count of files without text.
        is_utf8: require that the text is UTF-8; a file of text that is not counts as a bad record.
        run: function that calls a function for each of many tasks, and yields the results in order.

    Raises:
        UserError: a file cannot be read.
    """
    found = [*files]
    sources: dict[int, Source] = {}
    tasks = in_tasks(_readings(found, column, sources), lambda reading: reading.size, TASK_BYTES)
    with tqdm(desc="looking for text", unit="B", unit_scale=True, disable=not files) as bar:
        for results in run(partial(_measure, column, is_utf8), tasks):
            for number, documents, size, chosen, quotes, fault in results:
                for quote in quotes:
                    bad(quote)
                if fault is None:
                    sources[number] = sources[number].plus(documents, size, chosen)
                else:
                    del sources[number]
                    if fault:
                        passed_over.add(fault, found[number].path)
                bar.update(size)
    return [*sources.values()]


class _Reading(NamedTuple):
    """File of text, or a block of records."""

    number: int
    file: TextFile
    block: Block | None

    @property
    def size(self) -> int:
        return self.block.size if self.block else READ_BYTES  # seldom more


def _readings(files: Sequence[TextFile], column: str | None, sources: dict[int, Source]) -> Iterator[_Reading]:
    """Yield what can be measured independently, and add each file to `sources`."""
    for number, file in enumerate(files):
        sources[number] = Source(file, TEXT)
        try:
            kind = kind_of(file.path, column)
            sources[number] = Source(file, kind)
            if kind != TEXT:
                yield from (_Reading(number, file, block) for block in read_blocks(file.path, kind, column))
                continue
        except NotTextError:  # which is found again, and told, in its turn
            pass
        yield _Reading(number, file, None)


def _measure(column: str | None, is_utf8: bool, task: Sequence[_Reading]) -> list[Measured]:
    return [_measured(column, is_utf8, *reading) for reading in task]


def _measured(column: str | None, is_utf8: bool, number: int, file: TextFile, block: Block | None) -> Measured:
    quotes = list[str]()
    if block:
        found = documents_of(block, column, quotes.append, is_utf8)
    else:
        found = read_documents(file, TEXT, column, quotes.append, is_utf8)
    documents = size = chosen = 0
    try:
        for document in found:
            length = sum(map(len, document.pieces))
            documents += length > 0
            size += length
            chosen += length * is_chosen(document.key)
    except NotTextError as error:
        return Measured(number, fault=error.reason)
    except NotUTF8Error as error:
        return Measured(number, quotes=[str(error)], fault="")
    return Measured(number, documents, size, chosen, quotes)
