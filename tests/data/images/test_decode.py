"""Decoding of images: every format and orientation, without clipping."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdistill.data.images.decode import decode

pytestmark = pytest.mark.alone

Image = pytest.importorskip("PIL.Image")

ORIENTATION = 0x112
# Functions that rotate stored pixels [height, width, C], by the value of EXIF's orientation.
TURNS = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: np.rot90(x),
}


def encode(picture: Any, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def grey(values: np.ndarray, form: str) -> np.ndarray:
    """Encode and decode a grey image; check that its channels are equal, and return one, uint8 [height, width]."""
    pixels = np.asarray(decode(encode(Image.fromarray(values), form)))
    assert pixels.shape == (*values.shape, 3)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
@pytest.mark.parametrize("dtype", ["<u2", ">u2", "i4"])
@given(values=st.lists(st.integers(0, 65535), min_size=1, max_size=20).filter(lambda values: max(values) > 255))
def test_sixteen_bits_are_scaled(form: str, dtype: str, values: list[int]) -> None:
    if (form, dtype) in (("PNG", "i4"), ("PPM", ">u2")):
        form = "TIFF"  # Pillow cannot write such PNM files
    array = np.array([values], dtype)
    assert grey(array, form).tolist() == (array >> 8).tolist()


@pytest.mark.parametrize("form", ["PNG", "PPM"])
def test_a_dark_picture_of_sixteen_bits_stays_dark(form: str) -> None:
    assert grey(np.array([[0, 200, 255]], np.uint16), form).tolist() == [[0, 0, 0]]


def test_wide_types_may_hold_values_of_eight_bits() -> None:
    for dtype in (np.int32, np.float32):
        assert grey(np.array([[0, 7, 255]], dtype), "TIFF").tolist() == [[0, 7, 255]]


def test_floats_to_one_are_scaled() -> None:
    assert grey(np.array([[0, 0.25, 0.5, 1]], np.float32), "TIFF").tolist() == [[0, 64, 128, 255]]


@pytest.mark.parametrize(
    ("values", "dtype", "message"),
    [
        ([0, 65536], np.int32, "its values are from 0 to 65536, and must be from 0 to 65535"),
        ([-1, 9], np.int32, "its values are from -1 to 9"),
        ([0, 255.5], np.float32, r"its values are from 0.0 to 255.5, and must be from 0 to 1 or 0 to 255"),
        ([-0.5, 0.5], np.float32, "from -0.5 to 0.5"),
        ([0, np.nan], np.float32, "nan"),
        ([0, np.inf], np.float32, "inf"),
    ],
)
def test_values_of_an_unknown_range_are_refused(values: list[float], dtype: type, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode(encode(Image.fromarray(np.array([values], dtype)), "TIFF"))


def png(kind: int, channels: int, values: list[int], more: bytes = b"") -> bytes:
    """Encode a PNG of one row of 16-bit pixels with a color type that Pillow does not write."""
    header = struct.pack(">IIBBBBB", len(values) // channels, 1, 16, kind, 0, 0, 0)
    row = zlib.compress(b"\0" + struct.pack(f">{len(values)}H", *values))
    chunks = ((b"IHDR", header), (b"tRNS", more), (b"IDAT", row), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
        if data or name != b"tRNS"
    )


@pytest.mark.parametrize(
    ("kind", "channels", "more", "expected"),
    [
        (0, 1, b"", [0xAB, 0xAB, 0xAB]),
        (0, 1, b"\xab\x12", [0xAB, 0xAB, 0xAB]),  # this grey is transparent
        (2, 3, b"", [0xAB, 0x12, 0xFF]),
        (4, 2, b"", [0xAB, 0xAB, 0xAB]),
        (6, 4, b"", [0xAB, 0x12, 0xFF]),
    ],
)
def test_sixteen_bits_of_any_colour_type_are_scaled(kind: int, channels: int, more: bytes, expected: list[int]) -> None:
    pixels = np.asarray(decode(png(kind, channels, [0xAB12, 0x1234, 0xFF00, 0x0012][:channels], more)))
    assert pixels.tolist() == [[expected]]


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", TURNS)
def test_pictures_are_turned_upright(form: str, orientation: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 3), np.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"lossless": True} if form == "WEBP" else {}
    seen = np.asarray(decode(encode(Image.fromarray(pixels), form, exif=exif, **options)))
    np.testing.assert_array_equal(seen, TURNS[orientation](pixels))


def test_sixteen_bits_are_turned_as_well() -> None:
    values, exif = np.arange(0, 60_000, 2000, np.uint16).reshape(5, 6), Image.Exif()
    exif[ORIENTATION] = 6
    seen = np.asarray(decode(encode(Image.fromarray(values), "PNG", exif=exif)))
    np.testing.assert_array_equal(seen[..., 0], np.rot90(values >> 8, -1))


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 40])
def test_a_broken_orientation_is_none(exif: bytes) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 3), np.uint8)
    np.testing.assert_array_equal(np.asarray(decode(encode(Image.fromarray(pixels), "PNG", exif=exif))), pixels)


@pytest.mark.parametrize("transparency", [3, bytes(range(16))])
def test_transparency_is_left_out_of_palettes(transparency: int | bytes) -> None:
    picture = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4), "L").convert("P")
    colours = np.random.default_rng(0).integers(0, 256, (256, 3), np.uint8)
    picture.putpalette(colours.tobytes())
    seen = np.asarray(decode(encode(picture, "PNG", transparency=transparency)))
    np.testing.assert_array_equal(seen, colours[:16].reshape(4, 4, 3))


def test_a_picture_that_says_it_is_huge_is_refused() -> None:
    small = encode(Image.fromarray(np.zeros((1, 1), np.uint8)), "PNG")
    header = b"IHDR" + struct.pack(">II", 60_000, 60_000) + small[24:29]
    with pytest.raises(ValueError, match="decompression bomb"):
        decode(small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:])


def test_no_program_is_started_for_a_picture() -> None:
    with pytest.raises(ValueError, match="not an image"):
        decode(encode(Image.new("RGB", (8, 8)), "EPS"))


@pytest.mark.parametrize("form", ["MPO", "TIFF", "GIF", "PNG"])  # MPO is what cameras call .jpg
def test_of_several_pictures_in_a_file_the_first_is_taken(form: str) -> None:
    first, second = (Image.new("RGB", (8, 8), colour) for colour in ("white", "black"))
    pixels = np.asarray(decode(encode(first, form, save_all=True, append_images=[second])))
    assert (pixels == 255).all()
