"""From numbers of images to what a model takes: decoded, augmented, of one size, and normalised."""

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
MARGIN = 4  # pixels by which they are
SMALLEST_SHARE = 0.08  # of a photograph's area
WIDEST = 4 / 3  # of what is cut out of it
TRIES = 10
CENTRE_SHARE = 7 / 8  # 224 pixels of 256

ImageBatch = tuple[torch.Tensor, torch.Tensor]
"""Normalised images, float32 [batch, C, size, size], and labels, int64 [batch]."""


class Images:
    """A store's images as tensors, whose channels have mean 0 and deviation 1 over the training part.

    Photographs are augmented as the paper's are, which follows Goyal et al. 2017 (arXiv 1706.02677, Section 5.1): to a
    random part of the area, or its mirror image; evaluation takes the middle, of 7/8 of the short side. Small images
    are shifted, and mirrored only where they have colours (He et al. 2016, arXiv 1512.03385, Section 4.2): a mirrored
    digit is none.

    Pictures are decoded in as many threads as torch has (OMP_NUM_THREADS).

    Args:
        store: where they are.
        size: pixels a side; by default that of the arrays stored, or 224 where pictures are stored encoded.

    Attributes:
        size: the same.

    Raises:
        UserError: there are fewer pixels in the arrays stored.
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
        # Arrays that are hardly larger than what is wanted have lost their edges already.
        self._share = 1 if self._is_small else max(CENTRE_SHARE, self.size / stored if stored else 0)
        self._mean, self._deviation = (
            torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)
            for values in (store.kind.mean, store.kind.deviation)
        )
        self._threads = ThreadPoolExecutor(torch.get_num_threads())

    def train_images(self, numbers: Array, rng: np.random.Generator) -> ImageBatch:
        """The training images that have these numbers, int64 [batch], augmented; `rng` alone decides how.

        Raises:
            UserError: what is stored is damaged, or does not decode.
        """
        if self._is_small:
            pixels, labels = self._middles("train", numbers)
            return self._batch(shifted(pixels, rng), labels)
        images, labels = self._store.read("train", numbers)
        boxes = [partial(random_part, draws=draws) for draws in rng.random((len(numbers), 2 * TRIES + 2))]
        return self._batch(mirrored(self._cut("train", numbers, images, boxes), rng), labels)

    def validation_images(self, numbers: Array) -> ImageBatch:
        """The validation images that have these numbers, int64 [batch].

        Raises:
            UserError: as `train_images`.
        """
        return self._batch(*self._middles("validation", numbers))

    def _middles(self, part: str, numbers: Array) -> tuple[Array, Array]:
        images, labels = self._store.read(part, numbers)
        if isinstance(images, np.ndarray) and images.shape[-1] == self.size:
            return images, labels
        boxes = [partial(middle, share=self._share)] * len(numbers)
        return self._cut(part, numbers, images, boxes), labels

    def _cut(self, part: str, numbers: Array, images: Pictures, boxes: Iterable[Callable[[int, int], Box]]) -> Array:
        """Of each image what a function of its width and height says: uint8 [batch, C, size, size]."""

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
    """A part of a picture with 8 to 100 % of its area and sides in a ratio of 3:4 to 4:3, anywhere.

    After Szegedy et al. 2015 (arXiv 1409.4842, Section 6). Where none of `TRIES` such parts fits, the largest one with
    such sides that does.

    Args:
        width: of the picture, in pixels.
        height: likewise.
        draws: from [0, 1), [2 * TRIES + 2].
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
    """Images, uint8 [n, C, S, S], moved by up to `MARGIN` pixels, with zeros behind; `mirrored` where C is 3."""
    count, channels, size, _ = pixels.shape
    padded = np.pad(pixels, ((0, 0), (0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), (2, 3))
    top, left = rng.integers(0, 2 * MARGIN + 1, (2, count))
    moved: Array = windows[np.arange(count), :, top, left]
    return mirrored(moved, rng) if channels == 3 else moved


def mirrored(pixels: Array, rng: np.random.Generator) -> Array:
    """Images, uint8 [n, C, S, S], each as it is or left for right."""
    return np.where(rng.integers(0, 2, (len(pixels), 1, 1, 1)), pixels[..., ::-1], pixels)
