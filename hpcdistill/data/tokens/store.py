"""HDF5 store of tokens: two streams, with a checksum on each chunk.

/                   attributes: format, version, vocabulary, source, identity
/train              uint8, uint16 or uint32 [tokens], the smallest that holds the vocabulary; Fletcher-32 checksum on
                    each chunk; attribute bytes, the size of the text (absent in older stores, with one token per byte)
/validation         the same
/tokenizer          only if one byte is not one token: JSON of Hugging Face's `tokenizers`. In its tokens each
                    character is a byte: Tokenizer.from_str(JSON).decode(tokens, False).encode("latin-1") is the text
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


def write_store(
    path: Path, pieces: Iterable[tuple[str, bytes]], source: str, tokenizer: Tokenizer | None = None
) -> None:
    """Write a store from (part, text) pieces, in order; memory stays bounded by the largest piece.

    Args:
        path: file to write; replaced only when all pieces are written.
        pieces: each a part, one of `PARTS`, with the bytes to append to it.
        source: origin of the text, for reports.
        tokenizer: tokenizer of the text; without it, one byte is one token.
    """
    vocabulary, json = (tokenizer.get_vocab_size(), tokenizer.to_str()) if tokenizer else (BYTES, "")
    with atomic_file(path) as (file, _):
        parts = {name: _Part(file, name, np.min_scalar_type(vocabulary - 1)) for name in PARTS}
        for name, tokens, size in encode(pieces, tokenizer):
            parts[name].append(tokens, size)
        identity = hashlib.blake2b(json.encode(), digest_size=16)
        for part in parts.values():
            identity.update(part.digest.digest())
            part.tokens.attrs["bytes"] = part.bytes
        if tokenizer:
            file["tokenizer"] = text(json)
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
            self._bytes = {part: int(self._file[part].attrs.get("bytes", self._file[part].size)) for part in PARTS}
            if any(self._file[part].ndim != 1 or self._file[part].dtype.kind != "u" for part in PARTS):
                raise ValueError("a part is not a sequence of unsigned integers")

    def size(self, part: str) -> int:
        """Return the number of tokens in `part`."""
        return int(self._file[part].size)

    def bytes_per_token(self, part: str) -> float:
        """Return the mean bytes of text per token of `part`; nats per token divided by it are nats per byte."""
        return self._bytes[part] / self.size(part)

    def read(self, part: str, begin: int, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return `count` tokens of `part` from `begin`, int64.

        Raises:
            UserError: the bytes on disk do not match their checksum, or a token is outside the vocabulary.
        """
        with self._intact(f"tokens {begin} to {begin + count} of {part!r}"):
            tokens: np.ndarray[Any, np.dtype[np.int64]] = self._file[part][begin : begin + count].astype(np.int64)
        if tokens.max(initial=0) >= self.vocabulary:
            raise UserError(
                f"{self.path}: token {tokens.max()} in {part!r} near {begin} is outside its stated vocabulary of "
                f"{self.vocabulary}; prepare the data again"
            )
        return tokens
