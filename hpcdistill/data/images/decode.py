"""Decoding of images with Pillow: rotated as EXIF says, cropped and scaled."""

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
"""Left, top, right and bottom in pixels, possibly fractional."""
FORMATS = (
    "BMP",
    "GIF",
    "JPEG",
    "PNG",
    "PPM",
    "TIFF",
    "WEBP",
)  # for EPS and others Pillow starts programs


def decode(encoded: bytes) -> Image:
    """Decode the content of an image file to RGB, rotated as its EXIF orientation says.

    Grey is copied to the three channels; transparency is removed. Values of more than 8 bits are scaled: 16-bit values
    from their whole range, floats from [0, 1]. 32-bit integers and floats with a maximum of at most 255 are not scaled.

    Raises:
        UserError: Pillow is not installed.
        ValueError: the image is truncated, or its values are in no known range; the message says why.
    """
    pillow = _pillow()
    from PIL import ImageOps

    try:
        with pillow.open(io.BytesIO(encoded), formats=FORMATS) as picture:
            picture.load()
            with suppress(Exception):  # metadata may be damaged where the pixels are not
                ImageOps.exif_transpose(picture, in_place=True)
            return _to_rgb(picture)
    except pillow.UnidentifiedImageError:
        raise ValueError("not an image, or of an unsupported format") from None
    except Exception as error:  # Pillow's parsers raise many types
        raise ValueError(str(error)) from None


def _to_rgb(picture: Image) -> Image:
    if picture.mode == "F" or picture.mode.startswith("I"):  # convert() would clip the values
        is_wide = picture.mode == "F" or (picture.mode, picture.format) == ("I", "TIFF")
        picture = _pillow().fromarray(_to_eight_bits(np.asarray(picture), is_wide))
    elif "transparency" in picture.info:
        picture = picture.convert("RGBA")  # without this step Pillow warns
    return picture.convert("RGB")


def _to_eight_bits(values: Array, is_wide: bool) -> Array:
    """Scale grey values to uint8; for 32-bit types (`is_wide`) the maximum decides on the range."""
    low, high = values.min(), values.max()
    is_float = values.dtype.kind == "f"
    most = 255 if is_float else 65535
    if not 0 <= low <= high <= most:  # also with NaN
        ranges = "0 to 1 or 0 to 255" if is_float else "0 to 65535"
        raise ValueError(f"its values are from {low} to {high}, and must be from {ranges}; scale them")
    if is_float:
        values = np.rint(values * 255 if high <= 1 else values)
    elif not is_wide or high > 255:
        values = values >> 8
    return values.astype(np.uint8)


def from_pixels(pixels: Array) -> Image:
    """Return the image of uint8 [C, height, width]; C is 1 for grey and 3 for RGB."""
    picture: Image = _pillow().fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    return picture


def to_pixels(picture: Image) -> Array:
    """Return a grey or RGB image as uint8 [C, height, width]."""
    return np.atleast_3d(np.asarray(picture)).transpose(2, 0, 1)


def cut(picture: Image, box: Box, size: int) -> Image:
    """Crop an image to `box` and scale it to `size` × `size` pixels, with smoothing if that is fewer."""
    return picture.resize((size, size), _pillow().Resampling.BILINEAR, box)


def middle(width: float, height: float, share: float = 1) -> Box:
    """Return the box of the central square whose side is `share` of the shorter side.

    Scaled to S pixels it equals the usual "resize the shorter side to S / share, then center crop".
    """
    side = share * min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise UserError("images are decoded with Pillow, which is not installed; pip install pillow") from None
    return Image
