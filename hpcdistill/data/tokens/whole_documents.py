"""Whole documents encoded by a tokenizer in several processes, in pieces that survive a kill."""

from __future__ import annotations

import logging
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from hpcdistill.data.arrays import Array
from hpcdistill.data.prepare.pieces import Piece, in_tasks, make_pieces, pieces_folder, read_piece, write_whole
from hpcdistill.data.store import PARTS
from hpcdistill.data.tokens.documents import documents_of
from hpcdistill.data.tokens.formats import TEXT
from hpcdistill.data.tokens.parts import Piece as TextPiece
from hpcdistill.data.tokens.parts import Split, assign, read
from hpcdistill.data.tokens.records import Block, read_blocks
from hpcdistill.data.tokens.store import StoredTokenizer, TokenStore, write_tokens
from hpcdistill.data.tokens.tokenizer_file import TokenizerFile

logger = logging.getLogger(__name__)

TASKS = 256  # pieces of an input of usual size, which keep the processes busy to the end
TASK_BYTES = (1 << 18, 1 << 23)  # limits of the text in a piece
LONGEST = 1 << 21  # bytes of a text; a longer one is cut: encoded at once, as some tokenizers must, it takes 0.35 GB


class Text(NamedTuple):
    """Document, or a part of one, for one part of the store."""

    part: str
    text: str
    size: int
    """Size in bytes."""
    is_end: bool
    """True unless more of the document follows."""
    changes_tokens: bool
    """True if the document is cut after this text, and the tokens at the cut are not those of the whole."""


class Records(NamedTuple):
    """Block of records, each of which is a document."""

    block: Block
    column: str | None
    """Field that has the text."""
    cut: int | None
    """See `Split`; no record is cut."""

    @property
    def size(self) -> int:
        """Approximate size of the text in bytes."""
        return self.block.size

    def texts(self, tokenizer: TokenizerFile) -> Iterator[Text]:
        """Parse the records, and yield the text of each."""
        documents = documents_of(self.block, self.column, lambda _: None, is_utf8=True)
        return _texts(assign(documents, self.cut, is_utf8=True), tokenizer)


def write_documents(
    output: Path,
    splits: Sequence[Split],
    column: str | None,
    source: str,
    tokenizer: TokenizerFile,
    processes: int | None,
) -> None:
    """Write a store of the documents, each encoded whole and followed by the separator.

    Args:
        output: HDF5 file to write.
        splits: files and their split into parts.
        column: field of the records that has the text.
        source: origin of the text, for reports.
        tokenizer: the tokenizer.
        processes: number of processes; by default one for each core.

    Raises:
        UserError: the disk is full, a process was killed, or a part has no tokens.
    """
    total = sum(split.source.size for split in splits)
    task_bytes = min(max(total // TASKS, TASK_BYTES[0]), TASK_BYTES[1])
    changed = [split.source.file.path.stat().st_mtime_ns for split in splits]
    stored = StoredTokenizer(tokenizer.json, "utf-8", tokenizer.separator)
    with pieces_folder(output, "text", 2, splits, changed, column, tokenizer, task_bytes, LONGEST) as folder:
        tasks = in_tasks(_items(splits, column, tokenizer), lambda item: item.size, task_bytes)
        made = make_pieces(folder, partial(make_piece, tokenizer), tasks, processes)

        def write(whole: Path) -> dict[str, int]:
            write_tokens(whole, _encoded(made, total), source, tokenizer.vocabulary, stored)
            with TokenStore(whole) as store:
                return {part: store.size(part) for part in PARTS}

        write_whole(output, folder, write, "tokens")


def make_piece(tokenizer: TokenizerFile, task: Sequence[Text | Records]) -> Piece:
    """Return the tokens of a task.

    Returns:
        An array for each part; `bytes`, the size of the text in each part; and `changing`, the number of cuts that
        change tokens.
    """
    return _encoding_thread().submit(_encode, tokenizer, task).result()


def _encode(tokenizer: TokenizerFile, task: Sequence[Text | Records]) -> Piece:
    tokens = {part: array("I") for part in PARTS}
    sizes = dict.fromkeys(PARTS, 0)
    changing = 0
    for text in chain.from_iterable([item] if isinstance(item, Text) else item.texts(tokenizer) for item in task):
        tokens[text.part].fromlist(tokenizer.encode(text.text))
        if text.is_end and tokenizer.separator_id is not None:
            tokens[text.part].append(tokenizer.separator_id)
        sizes[text.part] += text.size
        changing += text.changes_tokens
    dtype = np.min_scalar_type(tokenizer.vocabulary - 1)
    piece = {part: np.frombuffer(ids, np.uint32).astype(dtype) for part, ids in tokens.items()}
    return {**piece, "bytes": np.array([sizes[part] for part in PARTS]), "changing": np.array(changing)}


@cache
def _encoding_thread() -> ThreadPoolExecutor:
    """Return this process's thread for encoding.

    The library spends half of its time in malloc, which is faster in the empty heap that glibc gives a new thread than
    in the fragmented one of the process.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the other cores are for other processes
    return ThreadPoolExecutor(1)


def _encoded(made: Iterable[Path], total: int) -> Iterator[tuple[str, Array, int]]:
    """Yield the tokens of pieces; show a progress bar, and warn of cuts that change tokens."""
    changing = 0
    with tqdm(desc="encoding", total=total, unit="B", unit_scale=True) as bar:
        for path in made:
            *tokens, sizes, number = read_piece(path, *PARTS, "bytes", "changing")
            yield from zip(PARTS, tokens, sizes.tolist(), strict=True)
            changing += int(number)
            bar.update(int(sizes.sum()))
    if changing:
        logger.warning(
            f"texts of more than {LONGEST >> 20} MiB are encoded in parts; at {changing:,} cuts this tokenizer gives "
            "other tokens than for the whole text"
        )


def _items(splits: Sequence[Split], column: str | None, tokenizer: TokenizerFile) -> Iterator[Text | Records]:
    """Yield the documents in order: records in blocks, if none is cut, and otherwise the text."""
    for split in splits:
        file, kind, *_ = split.source
        if kind != TEXT and split.has_whole_documents:
            yield from (Records(block, column, split.cut) for block in read_blocks(file.path, kind, column))
        else:
            yield from _texts(read(split, column, is_utf8=True), tokenizer)


def _texts(pieces: Iterable[TextPiece], tokenizer: TokenizerFile) -> Iterator[Text]:
    """Yield the text of documents, the long ones cut."""
    waiting = {part: bytearray() for part in PARTS}
    for part, piece, is_end in pieces:
        waiting[part] += piece
        while len(waiting[part]) > LONGEST:
            begin = waiting[part][:LONGEST].decode(errors="ignore")  # without a cut character
            place, is_alike = tokenizer.cut(begin)
            size = len(begin[:place].encode())
            yield Text(part, begin[:place], size, False, not is_alike)
            del waiting[part][:size]
        if is_end:
            yield Text(part, waiting[part].decode(), len(waiting[part]), True, False)
            waiting[part].clear()
