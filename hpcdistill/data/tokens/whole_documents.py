"""Whole documents encoded by a tokenizer in several processes, in pieces that survive a kill."""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from hpcdistill.data.arrays import Array
from hpcdistill.data.prepare.pieces import Piece, make_pieces, pieces_folder, read_piece, write_whole
from hpcdistill.data.store import PARTS
from hpcdistill.data.tokens.parts import Split, read
from hpcdistill.data.tokens.store import StoredTokenizer, TokenStore, write_tokens
from hpcdistill.data.tokens.tokenizer_file import TokenizerFile

logger = logging.getLogger(__name__)

TASKS = 256  # pieces of an input of usual size, which keep the processes busy to the end
TASK_BYTES = (1 << 18, 1 << 23)  # limits of the text in a piece
M_MXFAST = 1  # of malloc.h
LONGEST = 1 << 21  # bytes of a text that is encoded at once, which takes about 0.35 GB; a longer one is cut


class Text(NamedTuple):
    """Document, or a part of one, for one part of the store."""

    part: str
    text: str
    is_end: bool
    """True unless more of the document follows."""


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
    with pieces_folder(output, "text", 1, splits, changed, column, tokenizer, task_bytes, LONGEST) as folder:
        tasks = _tasks(_texts(splits, column, tokenizer, total), task_bytes)
        made = make_pieces(folder, partial(make_piece, tokenizer), tasks, processes)

        def write(whole: Path) -> dict[str, int]:
            write_tokens(whole, _encoded(made), source, tokenizer.vocabulary, stored)
            with TokenStore(whole) as store:
                return {part: store.size(part) for part in PARTS}

        write_whole(output, folder, write, "tokens")


def make_piece(tokenizer: TokenizerFile, task: Sequence[Text]) -> Piece:
    """Return the tokens of the texts, an array for each part, and `bytes`, the size of the text in each part."""
    _use_one_core()
    tokens: dict[str, list[Array]] = {part: [] for part in PARTS}
    sizes = dict.fromkeys(PARTS, 0)
    dtype = np.min_scalar_type(tokenizer.vocabulary - 1)
    separator = tokenizer.separator_id
    end = np.array([] if separator is None else [separator], dtype)
    for (part, text, is_end), ids in zip(task, tokenizer.encode([each.text for each in task]), strict=True):
        tokens[part].append(ids.astype(dtype))
        sizes[part] += len(text.encode())
        if is_end:
            tokens[part].append(end)
    joined = {part: np.concatenate(arrays) if arrays else end[:0] for part, arrays in tokens.items()}
    return {**joined, "bytes": np.array([sizes[part] for part in PARTS])}


@cache
def _use_one_core() -> None:
    """Set up a process that encodes beside others, once."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # The library spends half of its time in malloc. Without glibc's fastbins, which each free of a large block merges,
    # it needs a seventh less of it. Other C libraries have no `mallopt`.
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(M_MXFAST, 0)


def _encoded(made: Iterable[Path]) -> Iterator[tuple[str, Array, int]]:
    for path in made:
        *tokens, sizes = read_piece(path, *PARTS, "bytes")
        yield from zip(PARTS, tokens, sizes.tolist(), strict=True)


def _tasks(texts: Iterable[Text], task_bytes: int) -> Iterator[list[Text]]:
    task, size = list[Text](), 0
    for text in texts:
        task.append(text)
        size += len(text.text)
        if size >= task_bytes:
            yield task
            task, size = [], 0
    if task:
        yield task


def _texts(splits: Sequence[Split], column: str | None, tokenizer: TokenizerFile, total: int) -> Iterator[Text]:
    """Yield the documents in order, the long ones cut; show a progress bar."""
    waiting = {part: bytearray() for part in PARTS}
    unlike = 0
    with tqdm(desc="encoding", total=total, unit="B", unit_scale=True) as bar:
        for split in splits:
            for part, piece, is_end in read(split, column, is_utf8=True):
                waiting[part] += piece
                bar.update(len(piece))
                while len(waiting[part]) > LONGEST:
                    text = waiting[part][:LONGEST].decode(errors="ignore")  # without a cut character
                    place, is_alike = tokenizer.cut(text)
                    unlike += not is_alike
                    yield Text(part, text[:place], False)
                    del waiting[part][: len(text[:place].encode())]
                if is_end:
                    yield Text(part, waiting[part].decode(), True)
                    waiting[part].clear()
    if unlike:
        logger.warning(
            f"texts of more than {LONGEST >> 20} MiB are encoded in parts; at {unlike:,} cuts this tokenizer gives "
            "other tokens than for the whole text"
        )
