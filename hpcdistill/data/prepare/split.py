"""Split into training and validation part, by hashes that are the same on every machine."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow

VALIDATION_SHARE = 0.05
WORD = 8
SHORT_BYTES = 64  # maximum length of texts that are hashed together, eight bytes at a time


def mix(numbers: Any) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Map integers to evenly spread uint64s, one to one, by the step of SplitMix64 (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        z = np.asarray(numbers).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        result: np.ndarray[Any, np.dtype[np.uint64]] = z ^ (z >> np.uint64(31))
        return result


def in_validation(numbers: Any) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return a mask of the rows of the validation part, about 5 %, evenly spread.

    The part of a row depends on its number alone, so that it is known before the end of the input.

    Args:
        numbers: numbers of the rows in the input.
    """
    result: np.ndarray[Any, np.dtype[np.bool_]] = mix(numbers) < np.uint64(int(VALIDATION_SHARE * 2**64))
    return result


def hash_texts(texts: pyarrow.Array) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Hash an array of strings or bytes by their content to int64s >= 0; null is hashed like the empty string."""
    array = texts.cast("large_binary").fill_null(b"")
    _, offsets, data = array.buffers()
    ends = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    # Eight bytes from each offset, zeros after the end.
    padded = np.concatenate([np.frombuffer(data or b"", np.uint8), np.zeros(WORD, np.uint8)])
    words = np.ndarray((len(padded) - WORD + 1,), "<u8", padded, strides=(1,))
    begins, lengths = ends[:-1], np.diff(ends)
    hashes = mix(lengths)
    rest = np.flatnonzero((lengths > 0) & (lengths <= SHORT_BYTES))
    for place in range(0, SHORT_BYTES, WORD):
        rest = rest[lengths[rest] > place]
        unused = np.maximum(WORD - (lengths[rest] - place), 0).astype(np.uint64) * np.uint64(8)
        word = (words[begins[rest] + place] << unused) >> unused  # without the bytes of the next text
        hashes[rest] = mix(hashes[rest] ^ word)
    for place in np.flatnonzero(lengths > SHORT_BYTES).tolist():
        digest = hashlib.blake2b(padded[ends[place] : ends[place + 1]].data, digest_size=WORD).digest()
        hashes[place] = int.from_bytes(digest, "little")
    result: np.ndarray[Any, np.dtype[np.int64]] = (hashes >> np.uint64(1)).astype(np.int64)
    return result
