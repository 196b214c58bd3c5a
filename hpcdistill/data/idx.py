"""IDX files, MNIST's format (yann.lecun.com/exdb/mnist): a header of big-endian numbers, then the bytes of an array."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np

from hpcdistill.data.image_store import Array
from hpcdistill.errors import UserError

UNSIGNED_BYTES = b"\0\0\x08"  # and, with one byte more, the number of dimensions


def read_idx(images: Path, labels: Path) -> tuple[Array, Array]:
    """The images, uint8 [n, 1, S, S], and labels, uint8 [n], of two files, which are unpacked where they end in .gz.

    Raises:
        UserError: a file cannot be read or is not what it should be, the images are not square, or of another number.
    """
    pixels, numbers = _array(images, 3, "images"), _array(labels, 1, "labels")
    if len(pixels) != len(numbers):
        raise UserError(
            f"{images} has {len(pixels)} images, but {labels} {len(numbers)} labels; they must be of a pair"
        )
    if pixels.shape[1] != pixels.shape[2]:
        raise UserError(f"{images} has images of {pixels.shape[1]} × {pixels.shape[2]} pixels; they must be square")
    return pixels[:, None], numbers


def _array(path: Path, dimensions: int, what: str) -> Array:
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{path} cannot be read to its end: {error}; fetch it again") from None
    magic, begin = UNSIGNED_BYTES + bytes([dimensions]), 4 + 4 * dimensions
    if content[:4] != magic:
        raise UserError(
            f"{path} begins with {content[:4].hex() or 'nothing'}, where an IDX file of {what} has {magic.hex()}; give "
            "the file of images first, then that of labels"
        )
    shape = np.frombuffer(content[4:begin].ljust(begin - 4, b"\0"), ">u4").tolist()
    if len(content) != begin + math.prod(shape):
        raise UserError(
            f"{path} has {len(content):,} bytes, where its header {shape} asks for {begin + math.prod(shape):,}; fetch "
            "it again"
        )
    return np.frombuffer(content, np.uint8, offset=begin).reshape(shape)
