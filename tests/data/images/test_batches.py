"""Batches of images: augmented as in the paper, and reproducible."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpcdistill.data.images.batches import TRIES, Images, random_part, shifted
from hpcdistill.data.images.decode import cut
from hpcdistill.data.images.store import ImageStore, Kind, write_images
from hpcdistill.errors import UserError

pytestmark = pytest.mark.alone

Image = pytest.importorskip("PIL.Image")

CLASSES = [str(number) for number in range(10)]


def store_of(folder: Path, pictures: Any) -> ImageStore:
    """Write a store with the same images in both parts, as arrays or encoded."""
    shape = pictures.shape[1:] if isinstance(pictures, np.ndarray) else ()
    pixels = np.concatenate([decoded(picture) for picture in pictures], axis=1)
    histogram = np.stack([np.bincount(channel, minlength=256) for channel in pixels])
    labels = np.arange(len(pictures)) % 10
    pieces = [(part, pictures, labels) for part in ("train", "validation")]
    path = folder / f"{len(list(folder.iterdir()))}.h5"
    write_images(path, pieces, Kind.of(CLASSES, shape, histogram), "")
    return ImageStore(path)


def decoded(picture: np.ndarray | bytes) -> np.ndarray:
    if isinstance(picture, bytes):
        picture = np.asarray(Image.open(io.BytesIO(picture))).transpose(2, 0, 1)
    return picture.reshape(len(picture), -1)


def arrays(count: int, channels: int, side: int) -> np.ndarray:
    return np.random.default_rng(side).integers(0, 256, (count, channels, side, side), np.uint8)


def encode(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def coordinates(width: int, height: int) -> np.ndarray:
    """Return uint8 [height, width, 3]: red is the column, green the row, blue is 99."""
    across, down = np.meshgrid(np.arange(width), np.arange(height))
    return np.stack([across, down, np.full_like(across, 99)], -1).astype(np.uint8)


def pixels_of(store: ImageStore, images: torch.Tensor) -> np.ndarray:
    """Undo the normalization; return values in [0, 255]."""
    mean, deviation = (torch.tensor(x).view(-1, 1, 1) for x in (store.kind.mean, store.kind.deviation))
    return (images.double() * deviation + mean).numpy()


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 32), (3, 80)])
def test_evaluated_images_are_normalised(tmp_path: Path, channels: int, side: int) -> None:
    pictures = arrays(30, channels, side)
    with store_of(tmp_path, pictures) as store:
        images, labels = Images(store).validation_images(np.arange(30))
        assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
        assert labels.tolist() == [number % 10 for number in range(30)]
        torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(channels), atol=1e-5, rtol=0)
        torch.testing.assert_close(images.std((0, 2, 3)), torch.ones(channels), atol=1e-3, rtol=0)
        np.testing.assert_allclose(pixels_of(store, images), pictures, atol=1e-3)


def test_a_channel_that_never_changes_is_zero(tmp_path: Path) -> None:
    with store_of(tmp_path, np.full((4, 1, 8, 8), 7, np.uint8)) as store:
        assert not Images(store).validation_images(np.arange(4))[0].any()


@pytest.mark.parametrize("channels", [1, 3])
def test_small_images_are_shifted_and_mirrored_where_they_have_colours(channels: int) -> None:
    picture = arrays(1, channels, 12)[0]
    padded = np.pad(picture, ((0, 0), (4, 4), (4, 4)))
    shifts = {padded[:, y : y + 12, x : x + 12].tobytes(): (y, x) for y in range(9) for x in range(9)}
    mirrors = {np.frombuffer(key, np.uint8).reshape(picture.shape)[..., ::-1].tobytes() for key in shifts}
    made = [image.tobytes() for image in shifted(np.stack([picture] * 3000), np.random.default_rng(0))]
    assert {shifts[key] for key in made if key in shifts} == {(y, x) for y in range(9) for x in range(9)}
    assert sum(key in shifts for key in made) / 3000 == pytest.approx(1 if channels == 1 else 0.5, abs=0.05)
    assert all(key in shifts or key in mirrors for key in made)


sides = st.integers(1, 700)


@given(width=sides, height=sides, seed=st.integers(0, 2**32 - 1))
def test_a_random_part_lies_in_the_picture(width: int, height: int, seed: int) -> None:
    left, top, right, bottom = random_part(width, height, np.random.default_rng(seed).random(2 * TRIES + 2))
    assert 0 <= left < right <= width * (1 + 1e-12)
    assert 0 <= top < bottom <= height * (1 + 1e-12)
    assert 3 / 4 - 1e-9 <= (right - left) / (bottom - top) <= 4 / 3 + 1e-9
    if 3 / 4 <= width / height <= 4 / 3:
        assert 0.08 - 1e-9 <= (right - left) * (bottom - top) / (width * height) <= 1 + 1e-9
    cut(Image.new("RGB", (width, height)), (left, top, right, bottom), 5)


def test_random_parts_are_of_all_sizes_and_anywhere() -> None:
    rng = np.random.default_rng(0)
    parts = np.array([random_part(400, 300, rng.random(2 * TRIES + 2)) for _ in range(4000)])
    across, down = parts[:, 2] - parts[:, 0], parts[:, 3] - parts[:, 1]
    areas, ratios = across * down / 120_000, across / down
    assert areas.min() < 0.1
    assert areas.max() > 0.9
    assert np.quantile(areas[areas < 0.5], 0.5) == pytest.approx(0.29, abs=0.02), "all areas are as likely"
    assert np.quantile(ratios[areas < 0.5], [0.02, 0.5, 0.98]) == pytest.approx([3 / 4, 1, 4 / 3], abs=0.05)
    small = areas < 0.2
    for begin, room in ((parts[:, 0], 400 - across), (parts[:, 1], 300 - down)):
        assert np.quantile((begin / room)[small], [0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9], abs=0.05)


def test_of_a_long_picture_the_largest_part_that_fits_is_taken() -> None:
    draws = np.full(2 * TRIES + 2, 0.5)
    assert random_part(1000, 30, draws) == (480, 0, 520, 30)
    assert random_part(30, 1000, draws) == (0, 480, 30, 520)


@pytest.mark.parametrize("is_encoded", [True, False])
def test_photographs_are_cut_scaled_and_mirrored(tmp_path: Path, is_encoded: bool) -> None:
    picture = coordinates(150, 150)
    pictures = [encode(picture)] if is_encoded else picture.transpose(2, 0, 1)[None]
    with store_of(tmp_path, pictures) as store:
        images, _ = Images(store, 100).train_images(np.zeros(200, np.int64), np.random.default_rng(0))
        made = pixels_of(store, images)
    across, down = np.diff(made[:, 0], axis=2), np.diff(made[:, 1], axis=1)
    assert np.ptp(made[:, 0], axis=1).max() < 1.01, "columns stay upright"
    assert np.ptp(made[:, 1], axis=2).max() < 1.01, "rows stay level"
    mirrored = across.mean((1, 2)) < 0
    assert mirrored.mean() == pytest.approx(0.5, abs=0.1)
    assert (down.mean((1, 2)) > 0).all(), "never upside down"
    zoom = np.abs(across.mean((1, 2))) * 100 / 150, down.mean((1, 2)) * 100 / 150  # scale in each direction
    assert (zoom[0] * zoom[1]).min() < 0.15
    assert (zoom[0] * zoom[1]).max() > 0.8
    np.testing.assert_allclose(made[:, 2], 99, atol=1e-3)


@pytest.mark.parametrize(
    ("stored", "size", "begin", "length"),
    [(256, 224, 16, 224), (224, 224, 0, 224), (240, 224, 8, 224), (200, 100, 12.5, 175)],
)
def test_of_large_arrays_the_middle_is_evaluated(
    tmp_path: Path, stored: int, size: int, begin: float, length: int
) -> None:
    with store_of(tmp_path, coordinates(stored, stored).transpose(2, 0, 1)[None]) as store:
        images, _ = Images(store, size).validation_images(np.array([0]))
        (made,) = pixels_of(store, images)
    expected = begin + (np.arange(size) + 0.5) * length / size - 0.5
    # Values are rounded, and at the edges of a box fewer pixels are averaged.
    np.testing.assert_allclose(made[0], np.tile(expected, (size, 1)), atol=1e-3 if size == length else 1.01)
    np.testing.assert_allclose(made[1], made[0].T, atol=1e-3)


def test_of_photographs_the_middle_is_evaluated(tmp_path: Path) -> None:
    with store_of(tmp_path, [encode(coordinates(256, 128)), encode(coordinates(128, 256))]) as store:
        images, _ = Images(store, 112).validation_images(np.array([0, 1]))
        wide, tall = pixels_of(store, images)
    np.testing.assert_allclose(wide[0], np.tile(np.arange(72, 184), (112, 1)), atol=1e-3)
    np.testing.assert_allclose(wide[1], np.tile(np.arange(8, 120), (112, 1)).T, atol=1e-3)
    np.testing.assert_allclose(tall[0], np.tile(np.arange(8, 120), (112, 1)), atol=1e-3)
    np.testing.assert_allclose(tall[1], np.tile(np.arange(72, 184), (112, 1)).T, atol=1e-3)


def test_small_ones_are_the_same_whether_stored_encoded_or_not(tmp_path: Path) -> None:
    pictures = arrays(20, 3, 32)
    files = [encode(picture.transpose(1, 2, 0)) for picture in pictures]
    with store_of(tmp_path, pictures) as plain, store_of(tmp_path, files) as encoded:
        one, other = Images(plain), Images(encoded, 32)
        assert torch.equal(one.validation_images(np.arange(20))[0], other.validation_images(np.arange(20))[0])
        rngs = np.random.default_rng(1), np.random.default_rng(1)
        numbers = np.array([3, 3, 19])
        assert torch.equal(one.train_images(numbers, rngs[0])[0], other.train_images(numbers, rngs[1])[0])


@pytest.mark.parametrize("side", [32, 80])
def test_the_generator_alone_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int) -> None:
    with store_of(tmp_path, arrays(40, 3, side)) as store:
        numbers, rng = np.arange(40), np.random.default_rng(5)
        first, labels = Images(store).train_images(numbers, rng)
        second, _ = Images(store).train_images(numbers, rng)
        assert labels.tolist() == (numbers % 10).tolist()
        assert not torch.equal(first, second)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
        again = np.random.default_rng(5)
        assert torch.equal(Images(store).train_images(numbers, again)[0], first)
        assert torch.equal(Images(store).train_images(numbers, again)[0], second)


def test_sizes_are_what_is_stored_or_the_usual_one(tmp_path: Path) -> None:
    with store_of(tmp_path, arrays(2, 1, 20)) as plain, store_of(tmp_path, [encode(coordinates(9, 9))]) as encoded:
        assert (Images(plain).size, Images(plain, 16).size, Images(encoded).size) == (20, 16, 224)
        assert Images(encoded).train_images(np.array([0]), np.random.default_rng(0))[0].shape == (1, 3, 224, 224)
        assert Images(plain, 16).validation_images(np.array([0]))[0].shape == (1, 1, 16, 16)
        with pytest.raises(UserError, match=r"has images of 20 pixels a side, fewer than the 21 .* larger --size"):
            Images(plain, 21)


def test_stored_pictures_are_turned_upright_and_scaled_to_eight_bits(tmp_path: Path) -> None:
    values, exif = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000, Image.Exif()
    exif[0x112] = 6  # rotate by 90 degrees clockwise
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG", exif=exif)
    kind = Kind(CLASSES, (), [0.0] * 3, [1.0] * 3)
    write_images(tmp_path / "data.h5", [("validation", [file.getvalue()], np.zeros(1, np.int64))], kind, "")
    with ImageStore(tmp_path / "data.h5") as store:
        images, _ = Images(store, 8).validation_images(np.array([0]))
    np.testing.assert_array_equal(images[0].numpy(), np.broadcast_to(np.rot90(values >> 8, -1), (3, 8, 8)))


@pytest.mark.parametrize("size", [32, 100])
def test_a_stored_picture_that_does_not_decode_is_named(tmp_path: Path, size: int) -> None:
    good = encode(coordinates(50, 50))
    labels = np.zeros(3, np.int64)
    kind = Kind(CLASSES, (), [0.0] * 3, [1.0] * 3)
    write_images(tmp_path / "data.h5", [("train", [good, good[:-40], good], labels)], kind, "")
    with (
        ImageStore(tmp_path / "data.h5") as store,
        pytest.raises(UserError, match="image 1 of 'train' does not decode"),
    ):
        Images(store, size).train_images(np.array([0, 1]), np.random.default_rng(0))
