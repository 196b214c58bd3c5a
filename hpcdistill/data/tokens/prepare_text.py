"""`hpcdistill prepare text`: text files, folders and records into a token store, by bytes or a learned vocabulary."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from hpcdistill.data.prepare.bad_records import require_few, warn_of_bad
from hpcdistill.data.prepare.folder import PassedOver
from hpcdistill.data.prepare.pieces import explained
from hpcdistill.data.store import PARTS
from hpcdistill.data.tokens.documents import TEXT
from hpcdistill.data.tokens.files import find_files
from hpcdistill.data.tokens.parts import END, Deal, deal_by_input, deal_out, measure, read
from hpcdistill.data.tokens.store import TokenStore, write_store
from hpcdistill.data.tokens.tokenizer import check_vocabulary, train_tokenizer
from hpcdistill.errors import UserError

logger = logging.getLogger(__name__)

PIECE_BYTES = 1 << 16  # a word cut in two so rarely does no harm
SAMPLE_BYTES = 1 << 25  # learning takes 0.2 GB of memory with prose or code, about 3 GB where no word occurs twice


def prepare_text(
    inputs: Sequence[Path],
    output: Path,
    include: str = "*",
    exclude: Sequence[str] = (),
    vocabulary: int | None = None,
    validation: Sequence[Path] = (),
    column: str | None = None,
    max_bad: int = 0,
) -> None:
    """Turn text into a token store; a zero byte ends each document of several.

    A document is a file of text, whose name may end in .gz or .zst, or the text of a record of JSON lines or Parquet.
    Without `validation` about 5 % of the text become the validation part: documents chosen by a hash, of files by that
    of their names; or the end of each file, where there are too few documents for that. Links to files are followed.
    A warning tells which files are left out, as they are binary or UTF-16, are found again, or are no files.

    Args:
        inputs: files, and folders that are searched recursively.
        output: the HDF5 file to make.
        include: which file names of a folder to take, as a glob.
        exclude: names of files and folders to pass over, as globs.
        vocabulary: how many tokens to learn from the training part; by default one byte is one token.
        validation: files and folders for the validation part.
        column: which field of records has the text; by default `text`.
        max_bad: records to pass over that have no text there.

    Raises:
        UserError: an input does not exist or cannot be read, no text or too little is found, too many records are bad,
            there can be no such vocabulary, or the store cannot be written.
    """
    if vocabulary is not None:
        check_vocabulary(vocabulary)
    deals = _deals(inputs, include, exclude, validation, column, max_bad)
    tokenizer = train_tokenizer(_sample(deals, column), vocabulary) if vocabulary is not None else None
    with explained(output):
        write_store(output, _pieces(deals, column, "writing"), ", ".join(map(str, inputs)), tokenizer)
    with TokenStore(output) as store:
        _tell(store, vocabulary)


def _deals(
    inputs: Sequence[Path],
    include: str,
    exclude: Sequence[str],
    validation: Sequence[Path],
    column: str | None,
    max_bad: int,
) -> list[Deal]:
    passed_over, quotes = PassedOver(), list[str]()

    def bad(quote: str) -> None:
        quotes.append(quote)
        require_few(len(quotes), quotes, max_bad, "records")

    training, others = (find_files(paths, include, exclude, passed_over) for paths in (inputs, validation))
    if both := training.keys() & others.keys():
        raise UserError(f"{others[min(both)].path} is in --input and in --validation; leave it out of one of them")
    sources, validating = (measure(files.values(), column, bad, passed_over) for files in (training, others))
    where = ", ".join(map(str, inputs))
    if not sources and passed_over:
        raise UserError(f"there is no text in {where}; passed over: {passed_over}; check --input, --include")
    if not sources:
        raise UserError(f"no file matches {include!r} in {where}; check --input, --include")
    if column is not None and all(source.kind == TEXT for source in sources + validating):
        raise UserError(f"--column {column} is for Parquet and JSON lines, and there are none; leave it out")
    passed_over.tell()
    warn_of_bad(len(quotes), quotes, "records")
    deals = deal_by_input(sources, validating) if validation else deal_out(sources)
    sizes = {"train": sum(deal.training_size for deal in deals)}
    sizes["validation"] = sum(deal.source.size for deal in deals) - sizes["train"]
    if not all(sizes.values()):
        where = "--input and --validation" if validation else "--input"
        raise UserError(f"too little text for a training and a validation part: {sizes} bytes; add files to {where}")
    _tell_sources(deals, bool(validation))
    return deals


def _tell_sources(deals: Sequence[Deal], is_given: bool) -> None:
    documents = sum(deal.source.documents for deal in deals)
    kinds = Counter(deal.source.kind for deal in deals)
    by_hash = deals[0].cut is None
    how = "the files of --validation" if is_given else "whole documents" if by_hash else "the end of each file"
    print(
        f"{documents:,} documents, in files of {', '.join(f'{kind} ({count:,})' for kind, count in kinds.items())}; "
        f"validation: {how}"
    )


def _pieces(deals: Sequence[Deal], column: str | None, purpose: str) -> Iterator[tuple[str, bytes]]:
    """Return the part and the bytes of each piece, in order; shows how far it is."""
    end = END if sum(deal.source.documents for deal in deals) > 1 else b""
    total = sum(deal.source.size + (deal.source.documents + 1) * len(end) for deal in deals)
    waiting = {part: bytearray() for part in PARTS}  # as records may be of a few bytes, or of millions
    with tqdm(desc=purpose, total=total, unit="B", unit_scale=True) as bar:
        for deal in deals:
            for part, piece in read(deal, column, end):
                bar.update(len(piece))
                waiting[part] += piece
                while len(waiting[part]) >= PIECE_BYTES:
                    yield part, bytes(waiting[part][:PIECE_BYTES])
                    del waiting[part][:PIECE_BYTES]
    yield from ((part, bytes(rest)) for part, rest in waiting.items() if rest)


def _sample(deals: Sequence[Deal], column: str | None) -> Iterator[bytes]:
    """Return at most `SAMPLE_BYTES` of the training part and a piece more, evenly spread over it."""
    total = sum(deal.training_size for deal in deals)
    seen = taken = 0
    for part, piece in _pieces(deals, column, "learning the vocabulary"):
        if part != "train":
            continue
        if taken * total <= seen * SAMPLE_BYTES:
            taken += len(piece)
            yield piece
        seen += len(piece)


def _tell(store: TokenStore, wanted: int | None) -> None:
    if wanted is not None and store.vocabulary < wanted:
        logger.warning(
            f"--vocabulary {wanted}: the text is enough for {store.vocabulary} tokens only, and the store has those; "
            "for more, add files to --input"
        )
    print(
        f"{store.path}: {store.size('train'):,} training and {store.size('validation'):,} validation tokens, "
        f"{store.vocabulary:,} different ones, {store.bytes_per_token('train'):.2f} bytes each"
    )
