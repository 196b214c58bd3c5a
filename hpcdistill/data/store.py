"""The HDF5 token store: two byte streams, checksummed chunk by chunk.

/                   attributes: format, version, vocabulary, source, identity
/train              uint8 [tokens], Fletcher-32 checksum on each chunk
/validation         the same
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from hpcdistill.data.store_file import PARTS, StoreFile
from hpcdistill.errors import UserError
from hpcdistill.hdf5 import atomic_file

VOCABULARY = 256  # bytes
CHUNK_TOKENS = 1 << 16  # also the unit in which checksums are verified


def write_store(path: Path, pieces: Iterable[tuple[str, bytes]], source: str) -> dict[str, int]:
    """Write a store from (part, bytes) pieces, in order; memory stays bounded by the largest piece.

    Args:
        path: the file to make; replaced only when all pieces are written.
        pieces: each with one of `PARTS` and the bytes to append to it.
        source: where the text is from, for reports.

    Returns:
        Tokens per part.
    """
    identity = hashlib.blake2b(digest_size=16)
    with atomic_file(path) as (file, _):
        parts = {
            name: file.create_dataset(name, (0,), np.uint8, chunks=(CHUNK_TOKENS,), maxshape=(None,), fletcher32=True)
            for name in PARTS
        }
        for name, text in pieces:
            tokens, part = np.frombuffer(text, np.uint8), parts[name]
            part.resize(part.size + tokens.size, axis=0)
            part[part.size - tokens.size :] = tokens
            identity.update(name.encode() + text)
        file.attrs.update(
            format=TokenStore.FORMAT,
            version=TokenStore.VERSION,
            vocabulary=VOCABULARY,
            source=source,
            identity=identity.hexdigest(),
        )
        return {name: int(part.size) for name, part in parts.items()}


class TokenStore(StoreFile):
    """A token store, open for reading; see `StoreFile`.

    Attributes:
        vocabulary: tokens are in [0, vocabulary).
    """

    KIND, COMMAND = "a token store", "hpcdistill prepare text --input PATH"
    FORMAT, VERSION = "hpcdistill-tokens", 1

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.vocabulary = int(self._attributes["vocabulary"])

    def size(self, part: str) -> int:
        """Tokens in `part`."""
        return int(self._file[part].size)

    def read(self, part: str, begin: int, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """`count` tokens of `part` from `begin`, int64.

        Raises:
            UserError: the bytes on disk do not match their checksum, or a token is outside the vocabulary.
        """
        try:
            tokens: np.ndarray[Any, np.dtype[np.int64]] = self._file[part][begin : begin + count].astype(np.int64)
        except OSError as error:
            raise UserError(
                f"{self.path}: tokens {begin} to {begin + count} of {part!r} cannot be read ({error}); "
                "the file is damaged: prepare it again or restore it"
            ) from None
        if tokens.max(initial=0) >= self.vocabulary:
            raise UserError(
                f"{self.path}: token {tokens.max()} in {part!r} near {begin} is outside its stated vocabulary of "
                f"{self.vocabulary}; prepare the data again"
            )
        return tokens
