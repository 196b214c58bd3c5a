"""Pictures in Pillow's hands: decoded, turned upright, and cut to size."""

from __future__ import annotations

import io
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcdistill.data.arrays import Array
from hpcdistill.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels, which may be parts of pixels."""
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # for others, such as EPS, Pillow starts programs


def decode(encoded: bytes) -> Image:
    """Return the picture of a file with this content in RGB, as its EXIF orientation says that it is to be seen.

    Grey is copied to the three channels, transparency left out. Values of more than 8 bits are scaled: 16-bit ones
    from their whole range, floats from 0 to 1. Of 32-bit integers and floats those from 0 to 255 are taken as they are.

    Raises:
        UserError: there is no Pillow.
        ValueError: it is not a whole picture, or its values are in no known range; the message says why.
    """
    pillow = _pillow()
    from PIL import ImageOps

    try:
        with pillow.open(io.BytesIO(encoded), formats=FORMATS) as picture:
            picture.load()
            with suppress(Exception):  # whatever is wrong with what a camera wrote beside the pixels, they are whole
                ImageOps.exif_transpose(picture, in_place=True)
            return _to_rgb(picture)
    except pillow.UnidentifiedImageError:
        raise ValueError("not a picture, or of a format that is not read here") from None
    except Exception as error:  # Pillow raises whatever its parsers come upon
        raise ValueError(str(error)) from None


def _to_rgb(picture: Image) -> Image:
    if picture.mode == "F" or picture.mode.startswith("I"):  # convert() would clip these
        is_wide = picture.mode == "F" or (picture.mode, picture.format) == ("I", "TIFF")
        picture = _pillow().fromarray(_to_eight_bits(np.asarray(picture), is_wide))
    elif "transparency" in picture.info:
        picture = picture.convert("RGBA")  # without this step Pillow warns
    return picture.convert("RGB")


def _to_eight_bits(values: Array, is_wide: bool) -> Array:
    """Return grey values as uint8; 32-bit types (`is_wide`) do not tell their range, so the values must."""
    low, high = values.min(), values.max()
    is_float = values.dtype.kind == "f"
    most = 255 if is_float else 65535
    if not 0 <= low <= high <= most:  # also with NaN
        ranges = "0 to 1 or 0 to 255" if is_float else "0 to 65535"
        raise ValueError(f"its values reach from {low} to {high}, where they must be from {ranges}; scale them")
    if is_float:
        values = np.rint(values * 255 if high <= 1 else values)
    elif not is_wide or high > 255:
        values = values >> 8
    return values.astype(np.uint8)


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
