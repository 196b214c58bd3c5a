"""Preparation of IDX files, within the bounds of their headers."""

import gzip
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hpcdistill.data.images.idx import read_idx
from hpcdistill.data.images.prepare_images import prepare_images
from hpcdistill.data.images.store import ImageStore
from hpcdistill.data.prepare.split import in_validation
from hpcdistill.errors import UserError
from peak_memory import peak_of

pytestmark = pytest.mark.alone


def write_idx(path: Path, array: np.ndarray) -> Path:
    content = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def digits(count: int, side: int = 28) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(count)
    return random.integers(0, 256, (count, side, side), np.uint8), np.arange(count, dtype=np.uint8) % 10


@pytest.mark.parametrize("end", ["", ".gz"])
def test_idx_files_become_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    monkeypatch.setattr("hpcdistill.data.images.prepare_images.IDX_IMAGES", 64)
    pixels, labels = digits(500)
    inputs = [write_idx(tmp_path / f"images{end}", pixels), write_idx(tmp_path / f"labels{end}", labels)]
    prepare_images(inputs, tmp_path / "data.h5")
    chosen = in_validation(np.arange(500))
    with ImageStore(tmp_path / "data.h5") as store:
        for part, mask in (("train", ~chosen), ("validation", chosen)):
            stored, numbers = store.read(part, np.arange(store.size(part)))
            np.testing.assert_array_equal(stored, pixels[mask][:, None])
            assert numbers.tolist() == labels[mask].tolist()
        assert (store.kind.classes, store.kind.shape) == ([*"0123456789"], (1, 28, 28))
        np.testing.assert_allclose(store.kind.mean, [pixels[~chosen].mean()], rtol=1e-9)
        np.testing.assert_allclose(store.kind.deviation, [pixels[~chosen].std()], rtol=1e-9)
    prepare_images(inputs, tmp_path / "data.h5", inputs)
    with ImageStore(tmp_path / "data.h5") as store:
        assert (store.size("train"), store.size("validation")) == (500, 500)


def without(labels: np.ndarray, number: int) -> np.ndarray:
    return np.where(labels == number, number + 1, labels).astype(np.uint8)


PIXELS, LABELS = digits(40)


@pytest.mark.parametrize(
    ("pixels", "labels", "message"),
    [
        (
            LABELS,
            PIXELS,
            "begins with 00000801, where an IDX file of images has 00000803; give the file of images first",
        ),
        (PIXELS, PIXELS, "begins with 00000803, where an IDX file of labels has 00000801"),
        (b"", LABELS, "begins with nothing, where"),
        (b"\0\0\x08\x03\0", LABELS, "has 5 bytes, where its header .* asks for 16; download it again"),
        (b"\0\0\x0d\x03" + bytes(12), LABELS, "begins with 00000d03"),
        (PIXELS, b"\0\0\x08\x01\0\0\0\x28" + bytes(39), r"has 47 bytes, where its header \[40\] asks for 48"),
        (PIXELS, b"\0\0\x08\x01\0\0\0\x28" + bytes(41), r"has 49 bytes, where its header \[40\] asks for 48"),
        (PIXELS, LABELS[:-1], "has 40 images, but .*labels 39 labels; they must belong together"),
        (PIXELS[:, :, 1:], LABELS, "images of 28 × 27 pixels; they must be square"),
        (PIXELS[:0], LABELS[:0], "too few images for a training and a validation part"),
        (b"\0\0\x08\x03" + bytes(4) + b"\xff" * 8, LABELS[:0], "too few images for a training and a validation part"),
    ],
)
def test_bad_idx_files_are_refused(
    tmp_path: Path, pixels: np.ndarray | bytes, labels: np.ndarray | bytes, message: str
) -> None:
    paths = [tmp_path / "images", tmp_path / "labels"]
    for path, content in zip(paths, (pixels, labels), strict=True):
        path.write_bytes(content) if isinstance(content, bytes) else write_idx(path, content)
    with pytest.raises(UserError, match=message):
        prepare_images(paths, tmp_path / "data.h5")
    assert not (tmp_path / "data.h5").exists()


@pytest.mark.parametrize(
    ("validation", "options", "message"),
    [
        ((PIXELS, LABELS + 3), {}, "the label 10 is seen in the validation part only"),
        ((PIXELS[:, 1:, 1:], LABELS), {}, "--validation has images of 27 pixels a side, but --input of 28"),
        ((PIXELS, LABELS), {"size": 32}, "--size 32 is for folders of pictures"),
    ],
)
def test_idx_files_that_do_not_fit_are_refused(
    tmp_path: Path, validation: tuple[np.ndarray, np.ndarray], options: dict[str, int], message: str
) -> None:
    inputs = [write_idx(tmp_path / "images", PIXELS), write_idx(tmp_path / "labels", LABELS)]
    others = [write_idx(tmp_path / name, array) for name, array in zip(("vi", "vl"), validation, strict=True)]
    with pytest.raises(UserError, match=message):
        prepare_images(inputs, tmp_path / "data.h5", others, **options)


PACKED = gzip.compress(bytes([0, 0, 8, 3]) + struct.pack(">3I", *PIXELS.shape) + PIXELS.tobytes())


@pytest.mark.parametrize(
    "content",
    [b"no gzip", PACKED[:-9], PACKED[:3], PACKED[:10] + b"\xff" + PACKED[11:], PACKED[:-5] + b"\0" + PACKED[-4:]],
)
def test_idx_files_that_do_not_unpack_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "images.gz").write_bytes(content)
    with pytest.raises(UserError, match=r"images\.gz cannot be read to its end: .*; download it again"):
        prepare_images([tmp_path / "images.gz", tmp_path / "labels"], tmp_path / "data.h5")
    with pytest.raises(UserError, match=r"nowhere cannot be read to its end: .*No such file"):
        prepare_images([tmp_path / "nowhere", tmp_path / "labels"], tmp_path / "data.h5")


def bomb(path: Path, header: bytes, zeros: int) -> Path:
    """Write a compressed file that begins like an IDX file, piece by piece, so that its zeros take no memory."""
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(header)
        for _ in range(zeros >> 20):
            file.write(bytes(1 << 20))
    return path


def test_no_more_is_unpacked_than_the_header_asks_for(tmp_path: Path) -> None:
    header = bytes([0, 0, 8, 3]) + struct.pack(">3I", 40, 28, 28)
    images = bomb(tmp_path / "images.gz", header, 1 << 27)
    labels = write_idx(tmp_path / "labels", LABELS)

    def refused() -> None:
        with pytest.raises(UserError, match=r"images.gz expands to more bytes, where .*\[40, 28, 28\] asks for 31,376"):
            read_idx(images, labels)

    refused()
    assert peak_of(refused) - peak_of(lambda: None) < 1 << 26


@pytest.mark.parametrize("end", ["", ".gz"])
def test_a_header_that_asks_for_more_than_there_can_be_is_refused(tmp_path: Path, end: str) -> None:
    header = bytes([0, 0, 8, 3]) + struct.pack(">3I", *[0xFFFFFFFF] * 3)
    path, labels = tmp_path / f"images{end}", write_idx(tmp_path / "labels", LABELS)
    path.write_bytes(gzip.compress(header + bytes(999)) if end else header + bytes(999))
    with pytest.raises(UserError, match=r"images.* (has 1,015|expands to fewer) bytes, where its header"):
        read_idx(path, labels)


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir])
def test_what_is_no_file_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "images")
    with pytest.raises(UserError, match=r"images is not a regular file"):
        read_idx(tmp_path / "images", tmp_path / "labels")


def test_one_class_is_refused(tmp_path: Path) -> None:
    inputs = [write_idx(tmp_path / "images", PIXELS), write_idx(tmp_path / "labels", np.full_like(LABELS, 3))]
    with pytest.raises(UserError, match=r"all labels of .*labels are 3; there must be at least two classes"):
        prepare_images(inputs, tmp_path / "data.h5")
