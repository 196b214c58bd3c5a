"""IDX files, MNIST's format (yann.lecun.com/exdb/mnist): a header of big-endian numbers, then the bytes of an array."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from hpcdistill.data.arrays import Array
from hpcdistill.errors import UserError

UNSIGNED_BYTES = b"\0\0\x08"  # followed by one byte, the number of dimensions
MOST_UNPACKED = 1032  # largest ratio of decompressed to compressed bytes of .gz


def read_idx(images: Path, labels: Path) -> tuple[Array, Array]:
    """Read images, uint8 [n, 1, S, S], and labels, uint8 [n], from two files, decompressed if they end in .gz.

    Memory is that of the arrays in the headers, which is checked against the sizes of the files.

    Raises:
        UserError: a file cannot be read or has another format, the images are not square, or the numbers differ.
    """
    pixels, numbers = _array(images, 3, "images"), _array(labels, 1, "labels")
    if len(pixels) != len(numbers):
        raise UserError(
            f"{images} has {len(pixels)} images, but {labels} {len(numbers)} labels; they must belong together"
        )
    if pixels.shape[1] != pixels.shape[2]:
        raise UserError(f"{images} has images of {pixels.shape[1]} × {pixels.shape[2]} pixels; they must be square")
    return pixels[:, None], numbers


def _array(path: Path, dimensions: int, what: str) -> Array:
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is not a regular file; give files of images and of labels")
    magic, begin, packed = UNSIGNED_BYTES + bytes([dimensions]), 4 + 4 * dimensions, path.suffix.lower() == ".gz"
    try:
        with gzip.open(path) if packed else path.open("rb") as stream:
            header = stream.read(begin)
            shape = np.frombuffer(header[4:].ljust(begin - 4, b"\0"), ">u4").tolist()
            size, held = math.prod(shape), path.stat().st_size
            can_be = header[:4] == magic and begin + size <= held * (MOST_UNPACKED if packed else 1)
            content = stream.read(size + 1) if can_be else b""  # bounded by the header
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read to its end: {error}; download it again") from None
    if header[:4] != magic:
        raise UserError(
            f"{path} begins with {header[:4].hex() or 'nothing'}, where an IDX file of {what} has {magic.hex()}; give "
            "the file of images first, then that of labels"
        )
    if len(header) + len(content) != begin + size:
        found = f"has {held:,}" if not packed else "expands to more" if len(content) > size else "expands to fewer"
        raise UserError(f"{path} {found} bytes, where its header {shape} asks for {begin + size:,}; download it again")
    return np.frombuffer(content, np.uint8).reshape(shape if size else [0, 1, 1][:dimensions])
