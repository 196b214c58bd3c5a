"""Assignment of text to the training and the validation part: by document, or by the end of files if there are few."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from hpcdistill.data.prepare.split import VALIDATION_SHARE
from hpcdistill.data.store import PARTS
from hpcdistill.data.tokens.documents import Document, read_documents
from hpcdistill.data.tokens.files import TextFile

NEAR = 1.5  # accepted ratio of the validation part to `VALIDATION_SHARE`, or its inverse


class Source(NamedTuple):
    """File of text, and its size."""

    file: TextFile
    kind: str
    documents: int = 0
    """Number of documents that are not empty."""
    size: int = 0
    """Bytes of text."""
    chosen: int = 0
    """Bytes of the documents whose hash chooses the validation part."""

    def plus(self, documents: int, size: int, chosen: int) -> Source:
        """Return the source with more of its text measured."""
        return self._replace(documents=self.documents + documents, size=self.size + size, chosen=self.chosen + chosen)


class Split(NamedTuple):
    """Source, and its split into the two parts."""

    source: Source
    cut: int | None
    """Bytes of text at the beginning that are for training; None if the hash of each document decides."""

    @property
    def training_size(self) -> int:
        """Number of bytes of text in the training part."""
        return self.source.size - self.source.chosen if self.cut is None else self.cut

    @property
    def has_whole_documents(self) -> bool:
        """True if no document is cut, so that the part of each does not depend on those before it."""
        return self.cut is None or self.cut in (0, self.source.size)


def split_sources(sources: Sequence[Source]) -> list[Split]:
    """Assign about 5 % of the text to the validation part.

    A hash of each document chooses, so that its part does not depend on the other documents. If that gives much more or
    less than 5 %, as with few documents, the end of each file is used.
    """
    size, chosen = sum(source.size for source in sources), sum(source.chosen for source in sources)
    if VALIDATION_SHARE / NEAR <= chosen / max(size, 1) <= VALIDATION_SHARE * NEAR:
        return [Split(source, None) for source in sources]
    ends = [0, *accumulate(source.size for source in sources)]
    # Rounded over all files: rounded ends of many small files would add up to much more than 5 %.
    cuts = [int(end * (1 - VALIDATION_SHARE)) for end in ends]
    return [Split(source, after - before) for source, (before, after) in zip(sources, pairwise(cuts), strict=True)]


def split_by_input(training: Iterable[Source], validation: Iterable[Source]) -> list[Split]:
    """Assign each source to the part that it was given for."""
    return [*(Split(source, source.size) for source in training), *(Split(source, 0) for source in validation)]


class Piece(NamedTuple):
    """Piece of a document in one part."""

    part: str
    text: bytes
    is_end: bool
    """True for the last piece of the document in this part; its text is empty."""


def read(split: Split, column: str | None, is_utf8: bool = False) -> Iterator[Piece]:
    """Read a source, piece by piece, with the part of each; see `assign`.

    Args:
        split: the source and its split.
        column: field of the records that has the text.
        is_utf8: yield whole characters of UTF-8.
    """
    documents = read_documents(split.source.file, split.source.kind, column, lambda _: None, is_utf8)
    return assign(documents, split.cut, is_utf8)


def assign(documents: Iterable[Document], cut: int | None, is_utf8: bool = False) -> Iterator[Piece]:
    """Yield the pieces of documents with the part of each; a document that is cut has an end in both parts.

    Args:
        documents: the documents.
        cut: bytes of text at the beginning that are for training; None if the hash of each document decides.
        is_utf8: yield whole characters of UTF-8; a cut within a character is moved to its end.
    """
    position = 0
    for document in documents:
        border = cut if cut is not None else position if is_chosen(document.key) else sys.maxsize
        sizes = dict.fromkeys(PARTS, 0)
        for piece in document.pieces:
            rest = max(border - position, 0)
            while is_utf8 and 0 < rest < len(piece) and piece[rest] & 0xC0 == 0x80:  # within a character
                rest += 1
            for part, text in zip(PARTS, (piece[:rest], piece[rest:]), strict=True):
                if text:
                    sizes[part] += len(text)
                    yield Piece(part, text, False)
            position += len(piece)
        for part, size in sizes.items():
            if size:
                yield Piece(part, b"", True)


def is_chosen(key: bytes) -> bool:
    """Return whether a document belongs to the validation part, by a hash of its key."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") / 2**64 < VALIDATION_SHARE
