"""HDF5 store of tokens: two streams, with a checksum on each chunk.

/                   attributes: format, version, vocabulary, source, identity
/train              uint8, uint16 or uint32 [tokens], the smallest that holds the vocabulary; Fletcher-32 checksum on
                    each chunk; attribute bytes, the size of the text (absent in older stores, with one token per byte)
/validation         the same
/tokenizer          only if one byte is not one token: JSON of Hugging Face's `tokenizers`. The text is
                    Tokenizer.from_str(JSON).decode(tokens, skip_special_tokens=False).encode(ENCODING), as far as the
                    tokenizer is reversible. Attributes: encoding, "latin-1" for a vocabulary of byte sequences (also
                    if absent, as in older stores), "utf-8" for one of text; separator, the token after each document,
                    if there is one
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import h5py
import numpy as np

from hpcdistill.data.arrays import Array
from hpcdistill.data.store import PARTS, StoreFile, seal
from hpcdistill.data.tokens.tokenizer import BYTES, encode
from hpcdistill.errors import UserError
from hpcdistill.storage.hdf5 import atomic_file, growing, text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHUNK_TOKENS = 1 << 16  # also the unit in which checksums are verified


class StoredTokenizer(NamedTuple):
    """Tokenizer of a store."""

    json: str
    """JSON of Hugging Face's `tokenizers`."""
    encoding: str
    """Encoding that turns decoded text into bytes: "latin-1" if each character is a byte, otherwise "utf-8"."""
    separator: str | None
    """Token after each document, if there is one."""


def write_store(
    path: Path, pieces: Iterable[tuple[str, bytes]], source: str, tokenizer: Tokenizer | None = None
) -> None:
    """Write a store from (part, text) pieces, in order; memory stays bounded by the largest piece.

    Args:
        path: file to write; replaced only when all pieces are written.
        pieces: each a part, one of `PARTS`, with the bytes to append to it.
        source: origin of the text, for reports.
        tokenizer: learned tokenizer of byte sequences; without it, one byte is one token.
    """
    vocabulary = tokenizer.get_vocab_size() if tokenizer else BYTES
    stored = StoredTokenizer(tokenizer.to_str(), "latin-1", None) if tokenizer else None
    write_tokens(path, encode(pieces, tokenizer), source, vocabulary, stored)


def write_tokens(
    path: Path,
    encoded: Iterable[tuple[str, Array, int]],
    source: str,
    vocabulary: int,
    tokenizer: StoredTokenizer | None,
) -> None:
    """Write a store from (part, tokens, bytes of text) pieces, in order.

    Args:
        path: file to write; replaced only when all pieces are written.
        encoded: each a part, one of `PARTS`, with the tokens to append to it, and the size of the text they encode.
        source: origin of the text, for reports.
        vocabulary: size of the vocabulary.
        tokenizer: the tokenizer; None if one byte is one token.
    """
    with atomic_file(path) as (file, _):
        parts = {name: _Part(file, name, np.min_scalar_type(vocabulary - 1)) for name in PARTS}
        for name, tokens, size in encoded:
            parts[name].append(tokens, size)
        identity = hashlib.blake2b(tokenizer.json.encode() if tokenizer else b"", digest_size=16)
        for part in parts.values():
            identity.update(part.digest.digest())
            part.tokens.attrs["bytes"] = part.bytes
        if tokenizer:
            file["tokenizer"] = text(tokenizer.json)
            facts = {"encoding": tokenizer.encoding, "separator": tokenizer.separator}
            file["tokenizer"].attrs.update({name: text(fact) for name, fact in facts.items() if fact is not None})
        seal(file, TokenStore, source, identity.hexdigest(), vocabulary=vocabulary)


class _Part:
    """Part of a store that is being written."""

    def __init__(self, file: h5py.File, name: str, dtype: np.dtype[Any]) -> None:
        self.tokens = growing(file, name, dtype, CHUNK_TOKENS)
        self.bytes = 0
        self.digest = hashlib.blake2b()  # of the whole part, so that the sizes of pieces do not matter

    def append(self, tokens: Array, size: int) -> None:
        """Append `tokens`, which encode `size` bytes of text."""
        values = tokens.astype(self.tokens.dtype, copy=False)
        begin = self.tokens.size
        self.tokens.resize(begin + values.size, axis=0)
        self.tokens[begin:] = values
        self.bytes += size
        self.digest.update(values.data)


class TokenStore(StoreFile):
    """Store of tokens that is open for reading; see `StoreFile`.

    Attributes:
        vocabulary: size of the vocabulary; tokens are in [0, vocabulary).
    """

    KIND, COMMAND = "a token store", "hpcdistill prepare text --input PATH"
    FORMAT, VERSION = "hpcdistill-tokens", 2

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with self._intact("what it is"):
            self.vocabulary = int(self._attributes["vocabulary"])
            parts = {part: self._dataset(part) for part in PARTS}
            self._bytes = {part: int(tokens.attrs.get("bytes", tokens.size)) for part, tokens in parts.items()}
            if any(tokens.ndim != 1 or tokens.dtype.kind != "u" for tokens in parts.values()):
                raise ValueError("a part is not a sequence of unsigned integers")

    @property
    def tokenizer(self) -> StoredTokenizer | None:
        """Tokenizer of the text; None if one byte is one token."""
        if "tokenizer" not in self._file:
            return None
        with self._intact("its tokenizer"):
            stored = self._file["tokenizer"]
            facts = {name: value.decode() for name, value in stored.attrs.items()}
            return StoredTokenizer(stored[()].decode(), facts.get("encoding", "latin-1"), facts.get("separator"))

    def size(self, part: str) -> int:
        """Return the number of tokens in `part`."""
        return int(self._dataset(part).size)

    def bytes_per_token(self, part: str) -> float:
        """Return the mean bytes of text per token of `part`; nats per token divided by it are nats per byte."""
        return self._bytes[part] / self.size(part)

    def read(self, part: str, begin: int, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return `count` tokens of `part` from `begin`, int64.

        Raises:
            UserError: the bytes on disk do not match their checksum, or a token is outside the vocabulary.
        """
        with self._intact(f"tokens {begin} to {begin + count} of {part!r}"):
            tokens: np.ndarray[Any, np.dtype[np.int64]] = self._dataset(part)[begin : begin + count].astype(np.int64)
        if tokens.max(initial=0) >= self.vocabulary:
            raise UserError(
                f"{self.path}: token {tokens.max()} in {part!r} near {begin} is outside its stated vocabulary of "
                f"{self.vocabulary}; prepare the data again"
            )
        return tokens
