"""Text dealt out to the training and the validation part: by document, or where they are few by the end of files."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from tqdm import tqdm

from hpcdistill.data.prepare.folder import PassedOver
from hpcdistill.data.prepare.split import VALIDATION_SHARE
from hpcdistill.data.tokens.documents import NotTextError, kind_of, read_documents
from hpcdistill.data.tokens.files import TextFile

NEAR = 1.5  # times as much or as little as `VALIDATION_SHARE` is near enough
END = b"\0"  # of a document; no text contains it


class Source(NamedTuple):
    """A file of text, measured."""

    file: TextFile
    kind: str
    documents: int
    """How many are not empty."""
    size: int
    """Bytes of text."""
    chosen: int
    """Bytes of those documents whose hash chooses them for validation."""


class Deal(NamedTuple):
    """A source, and what of it goes into which part."""

    source: Source
    cut: int | None
    """Bytes of text for the training part, before those for validation; None: the hash of each document decides."""

    @property
    def training_size(self) -> int:
        """Bytes of text that go into the training part."""
        return self.source.size - self.source.chosen if self.cut is None else self.cut


def measure(
    files: Collection[TextFile], column: str | None, bad: Callable[[str], None], passed_over: PassedOver
) -> list[Source]:
    """Read files to see how much text there is; shows how far it is.

    Args:
        files: the files.
        column: which one of records has the text.
        bad: called for each record without text; see `read_documents`.
        passed_over: where to note files that hold no text.

    Raises:
        UserError: a file cannot be read.
    """
    sources = []
    with tqdm(desc="looking for text", unit="B", unit_scale=True, disable=not files) as bar:
        for file in files:
            try:
                sources.append(_measured(file, column, bad, bar.update))
            except NotTextError as error:
                passed_over.add(error.reason, file.path)
    return sources


def _measured(
    file: TextFile, column: str | None, bad: Callable[[str], None], progress: Callable[[int], object]
) -> Source:
    kind = kind_of(file.path, column)
    documents = size = chosen = 0
    for document in read_documents(file, kind, column, bad):
        before = size
        for piece in document.pieces:
            size += len(piece)
            progress(len(piece))
        documents += size > before
        chosen += (size - before) * is_chosen(document.key)
    return Source(file, kind, documents, size, chosen)


def deal_out(sources: Sequence[Source]) -> list[Deal]:
    """Deal out about 5 % of the text for validation.

    A hash of each document chooses, so that its part does not depend on the other documents. Where that gives much
    more or less than 5 %, as it does with few documents, the end of each file is taken.
    """
    size, chosen = sum(source.size for source in sources), sum(source.chosen for source in sources)
    if VALIDATION_SHARE / NEAR <= chosen / max(size, 1) <= VALIDATION_SHARE * NEAR:
        return [Deal(source, None) for source in sources]
    ends = [0, *accumulate(source.size for source in sources)]
    # Rounded over all files, or the ends of many small ones would add up to much more than 5 %.
    cuts = [int(end * (1 - VALIDATION_SHARE)) for end in ends]
    return [Deal(source, after - before) for source, (before, after) in zip(sources, pairwise(cuts), strict=True)]


def deal_by_input(training: Iterable[Source], validation: Iterable[Source]) -> list[Deal]:
    """Deal out sources that have been chosen for one part or the other."""
    return [*(Deal(source, source.size) for source in training), *(Deal(source, 0) for source in validation)]


def read(deal: Deal, column: str | None, end: bytes) -> Iterator[tuple[str, bytes]]:
    """Read a source as it is dealt out.

    Args:
        deal: the source and its cut.
        column: which one of records has the text.
        end: follows on each document, in each part that has some of it.

    Yields:
        The part and the bytes of each piece, which may be empty.
    """
    position = 0
    for document in read_documents(deal.source.file, deal.source.kind, column, lambda _: None):
        begin = position
        cut = deal.cut if deal.cut is not None else begin if is_chosen(document.key) else sys.maxsize
        for piece in document.pieces:
            rest = max(cut - position, 0)
            yield "train", piece[:rest]
            yield "validation", piece[rest:]
            position += len(piece)
        yield "train", end if begin < min(cut, position) else b""
        yield "validation", end if max(begin, cut) < position else b""


def is_chosen(key: bytes) -> bool:
    """Tell by a hash whether a document belongs to the validation part."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") / 2**64 < VALIDATION_SHARE
