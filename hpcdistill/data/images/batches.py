"""Batches of images: decoded, augmented, scaled to one size, and normalized."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch

from hpcdistill.data.arrays import Array
from hpcdistill.data.images.decode import Box, cut, decode, from_pixels, middle, to_pixels
from hpcdistill.data.images.store import SMALL, ImageStore, Pictures
from hpcdistill.errors import UserError

USUAL_SIZE = 224
MARGIN = 4  # pixels by which small images are shifted
SMALLEST_SHARE = 0.08  # smallest random part, of the image's area
WIDEST = 4 / 3  # largest aspect ratio of a random part
TRIES = 10
CENTRE_SHARE = 7 / 8  # 224 pixels of 256

ImageBatch = tuple[torch.Tensor, torch.Tensor]
"""Normalized images, float32 [batch, C, size, size], and labels, int64 [batch]."""


class Images:
    """Images of a store as tensors, whose channels have mean 0 and standard deviation 1 over the training part.

    Photographs are augmented as in the paper, after Goyal et al. 2017 (arXiv 1706.02677, Section 5.1): a random part of
    the area, flipped at random; for validation the center, of 7/8 of the shorter side. Small images are shifted, and
    flipped only if they have colors (He et al. 2016, arXiv 1512.03385, Section 4.2), as a flipped digit is not a digit.

    Images are decoded by as many threads as torch uses (OMP_NUM_THREADS).

    Args:
        store: the store.
        size: width and height in pixels; by default that of the stored arrays, or 224 if images are stored encoded.

    Attributes:
        size: width and height in pixels.

    Raises:
        UserError: the stored arrays have fewer pixels.
    """

    def __init__(self, store: ImageStore, size: int | None = None) -> None:
        stored = store.kind.shape[-1] if store.kind.shape else None
        self.size = size or stored or USUAL_SIZE
        if stored and self.size > stored:
            raise UserError(
                f"{store.path} has images of {stored} pixels a side, fewer than the {self.size} wanted; choose a "
                "smaller size, or prepare the data again with a larger --size"
            )
        self._store = store
        self._is_small = self.size <= SMALL
        # Arrays of nearly the wanted size have been cropped already.
        self._share = 1 if self._is_small else max(CENTRE_SHARE, self.size / stored if stored else 0)
        self._mean, self._deviation = (
            torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)
            for values in (store.kind.mean, store.kind.deviation)
        )
        self._threads = ThreadPoolExecutor(torch.get_num_threads())

    def train_images(self, numbers: Array, rng: np.random.Generator) -> ImageBatch:
        """Return the training images with these numbers, int64 [batch], augmented at random by `rng`.

        Raises:
            UserError: the store is damaged, or an image does not decode.
        """
        if self._is_small:
            pixels, labels = self._middles("train", numbers)
            return self._batch(shifted(pixels, rng), labels)
        images, labels = self._store.read("train", numbers)
        boxes = [partial(random_part, draws=draws) for draws in rng.random((len(numbers), 2 * TRIES + 2))]
        return self._batch(flipped(self._cut("train", numbers, images, boxes), rng), labels)

    def validation_images(self, numbers: Array) -> ImageBatch:
        """Return the validation images with these numbers, int64 [batch].

        Raises:
            UserError: the store is damaged, or an image does not decode.
        """
        return self._batch(*self._middles("validation", numbers))

    def _middles(self, part: str, numbers: Array) -> tuple[Array, Array]:
        images, labels = self._store.read(part, numbers)
        if isinstance(images, np.ndarray) and images.shape[-1] == self.size:
            return images, labels
        boxes = [partial(middle, share=self._share)] * len(numbers)
        return self._cut(part, numbers, images, boxes), labels

    def _cut(self, part: str, numbers: Array, images: Pictures, boxes: Iterable[Callable[[int, int], Box]]) -> Array:
        """Crop each image to the box that a function of its width and height returns: uint8 [batch, C, size, size]."""

        def one(number: int, image: bytes | Array, box: Callable[[int, int], Box]) -> Array:
            try:
                picture = decode(image) if isinstance(image, bytes) else from_pixels(image)
            except ValueError as error:
                raise UserError(
                    f"{self._store.path}: image {number} of {part!r} does not decode ({error}); prepare the data again"
                ) from None
            return to_pixels(cut(picture, box(*picture.size), self.size))

        return np.stack([*self._threads.map(one, numbers, images, boxes)])

    def _batch(self, pixels: Array, labels: Array) -> ImageBatch:
        return (torch.from_numpy(pixels) - self._mean) / self._deviation, torch.from_numpy(labels)


def random_part(width: int, height: int, draws: Array) -> Box:
    """Return a random box with 8 to 100 % of an image's area and an aspect ratio of 3:4 to 4:3.

    After Szegedy et al. 2015 (arXiv 1409.4842, Section 6). If none of `TRIES` boxes fits, the largest box with such an
    aspect ratio is placed at random.

    Args:
        width: width of the image, in pixels.
        height: height of the image, in pixels.
        draws: random numbers in [0, 1), [2 * TRIES + 2].
    """
    areas = width * height * (SMALLEST_SHARE + (1 - SMALLEST_SHARE) * draws[:TRIES])
    ratios = WIDEST ** (2 * draws[TRIES : 2 * TRIES] - 1)
    sides = np.sqrt([areas * ratios, areas / ratios])
    fitting = sides[:, (sides[0] <= width) & (sides[1] <= height)]
    largest = min(width, height * WIDEST), min(height, width * WIDEST)
    across, down = fitting[:, 0].tolist() if fitting.size else largest
    left, top = (draws[-2:] * (width - across, height - down)).tolist()
    return left, top, left + across, top + down


def shifted(pixels: Array, rng: np.random.Generator) -> Array:
    """Shift images, uint8 [n, C, S, S], by up to `MARGIN` pixels, padded with zeros; flip them if C is 3."""
    count, channels, size, _ = pixels.shape
    padded = np.pad(pixels, ((0, 0), (0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), (2, 3))
    top, left = rng.integers(0, 2 * MARGIN + 1, (2, count))
    moved: Array = windows[np.arange(count), :, top, left]
    return flipped(moved, rng) if channels == 3 else moved


def flipped(pixels: Array, rng: np.random.Generator) -> Array:
    """Flip each image, uint8 [n, C, S, S], horizontally with probability 1/2."""
    return np.where(rng.integers(0, 2, (len(pixels), 1, 1, 1)), pixels[..., ::-1], pixels)
