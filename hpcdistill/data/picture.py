"""Pictures in Pillow's hands: decoded, and cut to size."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcdistill.data.image_store import Array
from hpcdistill.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels, which may be parts of pixels."""


def decode(encoded: bytes) -> Image:
    """The picture of a file with this content, in RGB: of others grey is copied and transparency left out.

    Raises:
        UserError: there is no Pillow.
        ValueError: it is not a whole picture; the message says why.
    """
    pillow = _pillow()
    try:
        with pillow.open(io.BytesIO(encoded)) as picture:
            rgb: Image = picture.convert("RGB")
            return rgb
    except pillow.UnidentifiedImageError:
        raise ValueError("not a picture, or of a format that this Pillow does not know") from None
    except Exception as error:  # Pillow raises whatever its parsers come upon
        raise ValueError(str(error)) from None


def from_pixels(pixels: Array) -> Image:
    """The picture of uint8 [C, height, width] with C = 1, grey, or 3, RGB."""
    picture: Image = _pillow().fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    return picture


def to_pixels(picture: Image) -> Array:
    """uint8 [C, height, width] of a picture that is grey or RGB."""
    return np.atleast_3d(np.asarray(picture)).transpose(2, 0, 1)


def cut(picture: Image, box: Box, size: int) -> Image:
    """What is inside of `box`, scaled to `size` × `size`; smoothed where that is fewer pixels."""
    return picture.resize((size, size), _pillow().Resampling.BILINEAR, box)


def middle(width: float, height: float, share: float = 1) -> Box:
    """The square in the middle whose side is this share of the short side.

    Cut to S pixels it is the usual "short side to S / share, then centre crop", without scaling what is not kept.
    """
    side = share * min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise UserError("pictures are decoded with Pillow; pip install pillow") from None
    return Image
