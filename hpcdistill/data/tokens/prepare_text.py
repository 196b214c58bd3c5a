"""`hpcdistill prepare text`: a token store from files of text, by bytes, a learned vocabulary or a given tokenizer."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

from hpcdistill.data.prepare.bad_records import require_few, warn_of_bad
from hpcdistill.data.prepare.folder import PassedOver
from hpcdistill.data.prepare.pieces import Run, explain_write_errors, worker_processes
from hpcdistill.data.store import PARTS
from hpcdistill.data.tokens.files import find_files
from hpcdistill.data.tokens.formats import TEXT
from hpcdistill.data.tokens.measure import measure
from hpcdistill.data.tokens.parts import Split, read, split_by_input, split_sources
from hpcdistill.data.tokens.store import TokenStore, write_store
from hpcdistill.data.tokens.tokenizer import check_vocabulary, train_tokenizer
from hpcdistill.data.tokens.tokenizer_file import TokenizerChoice, read_tokenizer
from hpcdistill.data.tokens.whole_documents import write_documents
from hpcdistill.errors import UserError

logger = logging.getLogger(__name__)

END = b"\0"  # end of a document, where one byte is one token; its text has no zero bytes
PIECE_BYTES = 1 << 16  # words are seldom cut at the end of a piece
SAMPLE_BYTES = 1 << 25  # learning takes 0.2 GB of memory for prose or code, about 3 GB if no word occurs twice


def prepare_text(
    inputs: Sequence[Path],
    output: Path,
    include: str = "*",
    exclude: Sequence[str] = (),
    vocabulary: int | None = None,
    validation: Sequence[Path] = (),
    column: str | None = None,
    max_bad: int = 0,
    tokenizer: TokenizerChoice | None = None,
    processes: int | None = None,
) -> None:
    """Write a token store from text.

    Tokens are bytes, with a zero byte after each document if there are several; or sequences of bytes that are learned
    here; or the tokens of a given tokenizer, with its separator after each document.

    A document is a file of text, whose name may end in .gz or .zst, or the text of a record of JSON lines or Parquet.
    Without `validation`, about 5 % of the text become the validation part: documents chosen by a hash of the file's
    name or the record's text; or the end of each file, if there are too few documents. Links to files are followed.
    A warning names files that are left out: binary or UTF-16 files, repeated files, pipes, sockets and devices.

    Args:
        inputs: files, and folders that are searched recursively.
        output: HDF5 file to write.
        include: glob of file names in folders to include.
        exclude: globs of file and folder names to leave out.
        vocabulary: number of tokens to learn from the training part; by default one byte is one token.
        validation: files and folders for the validation part.
        column: field of the records that has the text; by default `text`.
        max_bad: maximum number of records without text to pass over; with `tokenizer`, files that are not UTF-8 count
            as such.
        tokenizer: tokenizer of the text, which must be UTF-8; not together with `vocabulary`.
        processes: number of processes that encode with `tokenizer`; by default one for each core.

    Raises:
        UserError: an input does not exist or cannot be read, there is no text or too little, too many records are bad,
            the vocabulary is out of range, the tokenizer cannot be used, or the store cannot be written.
    """
    if vocabulary is not None and tokenizer:
        raise UserError(
            f"--vocabulary {vocabulary} learns a vocabulary, and --tokenizer names one; leave out one of them"
        )
    if vocabulary is not None:
        check_vocabulary(vocabulary)
    given = read_tokenizer(tokenizer) if tokenizer else None
    split = partial(_splits, inputs, include, exclude, validation, column, max_bad)
    source = ", ".join(map(str, inputs))
    if given:
        with worker_processes(processes) as run:
            splits = split(True, run)
        write_documents(output, splits, column, source, given, processes)
    else:
        splits = split()
        learned = train_tokenizer(_sample(splits, column), vocabulary) if vocabulary is not None else None
        with explain_write_errors(output):
            write_store(output, _pieces(splits, column, "writing"), source, learned)
    with TokenStore(output) as store:
        _print_size(store, vocabulary)


def _splits(
    inputs: Sequence[Path],
    include: str,
    exclude: Sequence[str],
    validation: Sequence[Path],
    column: str | None,
    max_bad: int,
    is_utf8: bool = False,
    run: Run = map,
) -> list[Split]:
    passed_over, quotes = PassedOver(), list[str]()

    def bad(quote: str) -> None:
        quotes.append(quote)
        require_few(len(quotes), quotes, max_bad, "records")

    training, others = (find_files(paths, include, exclude, passed_over) for paths in (inputs, validation))
    if both := training.keys() & others.keys():
        raise UserError(f"{others[min(both)].path} is in --input and in --validation; leave it out of one of them")
    sources, validating = (
        measure(files.values(), column, bad, passed_over, is_utf8, run) for files in (training, others)
    )
    where = ", ".join(map(str, inputs))
    if not sources and passed_over:
        raise UserError(f"there is no text in {where}; passed over: {passed_over}; check --input, --include")
    if not sources:
        raise UserError(f"no file matches {include!r} in {where}; check --input, --include")
    if column is not None and all(source.kind == TEXT for source in sources + validating):
        raise UserError(f"--column {column} is for Parquet and JSON lines, and there are none; leave it out")
    passed_over.warn()
    warn_of_bad(len(quotes), quotes, "records")
    splits = split_by_input(sources, validating) if validation else split_sources(sources)
    sizes = {"train": sum(split.training_size for split in splits)}
    sizes["validation"] = sum(split.source.size for split in splits) - sizes["train"]
    if not all(sizes.values()):
        where = "--input and --validation" if validation else "--input"
        raise UserError(f"too little text for a training and a validation part: {sizes} bytes; add files to {where}")
    _print_sources(splits, bool(validation))
    return splits


def _print_sources(splits: Sequence[Split], is_given: bool) -> None:
    documents = sum(split.source.documents for split in splits)
    kinds = Counter(split.source.kind for split in splits)
    by_hash = splits[0].cut is None
    how = "the files of --validation" if is_given else "whole documents" if by_hash else "the end of each file"
    print(
        f"{documents:,} documents, in files of {', '.join(f'{kind} ({count:,})' for kind, count in kinds.items())}; "
        f"validation: {how}"
    )


def _pieces(splits: Sequence[Split], column: str | None, purpose: str) -> Iterator[tuple[str, bytes]]:
    """Yield the part and the bytes of each piece, in order; show a progress bar."""
    end = END if sum(split.source.documents for split in splits) > 1 else b""
    total = sum(split.source.size + (split.source.documents + 1) * len(end) for split in splits)
    waiting = {part: bytearray() for part in PARTS}  # records may have a few bytes, or millions
    with tqdm(desc=purpose, total=total, unit="B", unit_scale=True) as bar:
        for split in splits:
            for part, piece, is_end in read(split, column):
                piece = end if is_end else piece
                bar.update(len(piece))
                waiting[part] += piece
                while len(waiting[part]) >= PIECE_BYTES:
                    yield part, bytes(waiting[part][:PIECE_BYTES])
                    del waiting[part][:PIECE_BYTES]
    yield from ((part, bytes(rest)) for part, rest in waiting.items() if rest)


def _sample(splits: Sequence[Split], column: str | None) -> Iterator[bytes]:
    """Yield about `SAMPLE_BYTES` of the training part, evenly spread over it."""
    total = sum(split.training_size for split in splits)
    seen = taken = 0
    for part, piece in _pieces(splits, column, "learning the vocabulary"):
        if part != "train":
            continue
        if taken * total <= seen * SAMPLE_BYTES:
            taken += len(piece)
            yield piece
        seen += len(piece)


def _print_size(store: TokenStore, wanted: int | None) -> None:
    if wanted is not None and store.vocabulary < wanted:
        logger.warning(
            f"--vocabulary {wanted}: the text gives only {store.vocabulary} tokens; for more, add files to --input"
        )
    separator = store.tokenizer.separator if store.tokenizer else None
    print(
        f"{store.path}: {store.size('train'):,} training and {store.size('validation'):,} validation tokens, "
        f"{store.vocabulary:,} different ones, {store.bytes_per_token('train'):.2f} bytes each"
        + (f"; {separator} ends each document" if separator else "")
    )
