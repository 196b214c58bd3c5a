"""Vocabulary of byte sequences, learned by byte pair encoding (Sennrich et al., arXiv 1508.07909) with `tokenizers`.

Text need not be UTF-8, but `tokenizers` takes strings. Therefore each byte becomes the character with its number, as
in Latin-1, which is reversible for any bytes. The usual `ByteLevel` would encode those characters as UTF-8, with two
symbols for each byte above 127. Tokens below 256 are the bytes themselves, the others are sequences of bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from hpcdistill.data.arrays import Array
from hpcdistill.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BYTES = 256
MAX_VOCABULARY = 1 << 20
MIN_COUNT = 2  # a sequence that occurs once gets no token
BATCH_PIECES = 32  # pieces encoded at a time, by all cores; a token takes about 100 bytes meanwhile
# Words, which no token spans. Their length is bounded, as a merge costs the length of each word that it occurs in.
WORD = "|".join(
    [
        r" ?[A-Za-z\x{80}-\x{ff}]{1,64}",  # bytes above 127 are those of UTF-8 outside ASCII
        r" ?[0-9]{1,64}",
        r" ?[!-/:-@\[-`{-~]{1,64}",
        r"[\t-\r ]{1,64}?(?= ?[^\t-\r ]|\z)",  # without the space before the next word
        r"[\t-\r ]{64}",
        r"[\x00-\x08\x0e-\x1f\x7f]",  # the end of a document is always a token by itself
    ]
)


def check_vocabulary(vocabulary: int) -> None:
    """Check that a vocabulary of this size can be learned, before anything is read.

    Raises:
        UserError: the size is out of range, or `tokenizers` is not installed.
    """
    if not BYTES < vocabulary <= MAX_VOCABULARY:
        raise UserError(
            f"--vocabulary {vocabulary} must be from {BYTES + 1} (the bytes and one more) to {MAX_VOCABULARY}; "
            "8000 suits small models, and without it one byte is one token"
        )
    try:
        import tokenizers  # noqa: F401
    except ImportError:
        raise UserError(
            f"--vocabulary {vocabulary}: vocabularies are learned with tokenizers; pip install tokenizers, or leave "
            "out --vocabulary for one token a byte"
        ) from None


def train_tokenizer(pieces: Iterable[bytes], vocabulary: int) -> Tokenizer:
    """Learn a vocabulary; equal pieces give equal vocabularies.

    Args:
        pieces: the text. Its different words are kept in memory, with up to 100 times their size.
        vocabulary: number of tokens; too little text gives fewer.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), "isolated")
    tokenizer.decoder = decoders.Fuse()  # or tokens would be joined by spaces
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=MIN_COUNT,
        initial_alphabet=[chr(byte) for byte in range(BYTES)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(map(_characters, pieces), trainer)
    return tokenizer


def encode(pieces: Iterable[tuple[str, bytes]], tokenizer: Tokenizer | None) -> Iterator[tuple[str, Array, int]]:
    """Yield (part, tokens, bytes of text) for (part, text) pieces; without a tokenizer, tokens are bytes, uint8."""
    if tokenizer is None:
        yield from ((part, np.frombuffer(text, np.uint8), len(text)) for part, text in pieces)
        return
    rest = iter(pieces)
    while batch := list(islice(rest, BATCH_PIECES)):
        encodings = tokenizer.encode_batch_fast([_characters(text) for _, text in batch])
        for (part, text), encoding in zip(batch, encodings, strict=True):
            yield part, np.array(encoding.ids, np.uint32), len(text)


def _characters(text: bytes) -> str:
    return text.decode("latin-1")
