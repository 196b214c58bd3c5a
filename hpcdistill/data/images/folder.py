"""Folders of images in ImageNet's layout, with a folder for each class, read piece by piece."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from hpcdistill.data.arrays import Array
from hpcdistill.data.images.decode import cut, decode, middle, to_pixels
from hpcdistill.data.images.layout import SUFFIXES, class_names, is_picture, require_two
from hpcdistill.data.images.store import Pictures
from hpcdistill.data.prepare.bad_records import bad_arrays
from hpcdistill.data.prepare.folder import PassedOver, walk
from hpcdistill.data.prepare.pieces import Piece, read_piece
from hpcdistill.data.prepare.split import in_validation
from hpcdistill.data.store import PARTS
from hpcdistill.errors import UserError, suggestion

logger = logging.getLogger(__name__)

PIECE_IMAGES = 256
PIECE_BYTES = 1 << 25  # of the files of a piece
FILE_BYTES = 1 << 30  # more than the largest picture that Pillow takes
EMPTY = np.empty(0, np.uint8)


class File(NamedTuple):
    """File that should be an image."""

    path: str
    label: int
    validation: bool
    size: int  # bytes
    changed: int  # modification time, ns


# Listing


def list_files(folder: Path, validation: Path | None) -> tuple[list[str], list[File]]:
    """Return the names of the classes, sorted, and the files in a fixed order; warn of what is left out.

    Args:
        folder: folder with one folder for each class, which has images at any depth.
        validation: such a folder for the validation part; without it, a hash of each path in `folder` chooses its part.

    Raises:
        UserError: a folder cannot be read or has another layout, or a class has no training images.
    """
    passed_over = PassedOver()
    try:
        classes, files = _list(folder, validation, passed_over)
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}; check --input and --validation") from None
    passed_over.warn()
    return classes, files


def _list(folder: Path, validation: Path | None, passed_over: PassedOver) -> tuple[list[str], list[File]]:
    classes = class_names(folder, passed_over)
    require_two(folder, classes)
    if validation is None:
        files = [*_files(folder, classes, classes, _by_hash, passed_over)]
        _require_training(folder, classes, files)
        return classes, files
    chosen = class_names(validation, passed_over)
    _require_known(folder, classes, validation, chosen)
    training = _files(folder, classes, classes, lambda paths: np.zeros(len(paths), bool), passed_over)
    others = _files(validation, chosen, classes, lambda paths: np.ones(len(paths), bool), passed_over)
    return classes, [*training, *others]


def _require_known(folder: Path, classes: list[str], validation: Path, chosen: list[str]) -> None:
    unknown, missing = (sorted(set(one) - set(other)) for one, other in ((chosen, classes), (classes, chosen)))
    if unknown:
        raise UserError(
            f"--validation {validation} has a class {unknown[0]!r}, which --input {folder} does not have"
            f"{suggestion(unknown[0], classes)}; both need the same names of folders"
        )
    if missing:
        logger.warning(
            f"--validation {validation} has no pictures of {len(missing)} of the {len(classes)} classes, such as "
            f"{missing[0]!r}; their accuracy will not be measured"
        )


def _files(
    folder: Path,
    names: list[str],
    classes: list[str],
    validation: Callable[[list[str]], Array],
    passed_over: PassedOver,
) -> Iterator[File]:
    """Yield the images of the classes called `names`; `validation` returns a mask of the paths of that part."""

    def is_hidden(entry: os.DirEntry[str]) -> bool:
        if hidden := entry.name.startswith("."):
            passed_over.add("hidden", entry.path)
        return hidden

    labels = {name: label for label, name in enumerate(classes)}
    for name in tqdm(names, desc=f"listing {folder.name}", unit="class"):
        pictures = []
        for entry in walk(folder / name, passed_over, is_hidden):
            if is_picture(entry.name):
                pictures.append(entry)
            else:
                passed_over.add("without the suffix of an image", entry.path)
        if not pictures:
            raise UserError(f"{folder / name} has no pictures in it ({', '.join(SUFFIXES)}); add some, or remove it")
        chosen = validation([os.path.relpath(entry.path, folder) for entry in pictures]).tolist()
        for entry, taken in zip(pictures, chosen, strict=True):
            yield File(entry.path, labels[name], taken, *_size_and_time(entry))


def _size_and_time(entry: os.DirEntry[str]) -> tuple[int, int]:
    try:
        status = entry.stat()
    except OSError:  # reading will name the error
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _by_hash(paths: list[str]) -> Array:
    hashes = [hashlib.blake2b(os.fsencode(path), digest_size=8).digest() for path in paths]
    return in_validation(np.frombuffer(b"".join(hashes), ">u8"))


def _require_training(folder: Path, classes: list[str], files: list[File]) -> None:
    trained = {file.label for file in files if not file.validation}
    for label, name in enumerate(classes):
        if label not in trained:
            raise UserError(
                f"all pictures of {folder / name} fall into the validation part, by a hash of their names; "
                "add some, or choose that part with --validation"
            )


# Reading


def cut_into_tasks(files: list[File]) -> Iterator[list[File]]:
    """Yield the files of each piece, in order; show a progress bar."""
    with tqdm(desc="reading", total=len(files), unit="image") as bar:
        begin = size = 0
        for end, file in enumerate(files, 1):
            size += file.size
            if end - begin == PIECE_IMAGES or size >= PIECE_BYTES or end == len(files):
                yield files[begin:end]
                bar.update(end - begin)
                begin, size = end, 0


def make_piece(side: int | None, files: list[File]) -> Piece:
    """Make the piece of some files; files that cannot be read or decoded are bad, and are not stored.

    The arrays are image: uint8 [images, 3, side, side], or without `side` the concatenated bytes of the files; end:
    int64, the end of each file in them; label: int64; histogram: int64 [3, 256], counts of the values of each channel
    in the training part.
    """
    good, images, quotes = list[File](), [], list[str]()
    histogram = np.zeros((3, 256), np.int64)
    for file in files:
        try:
            if file.size > FILE_BYTES:
                raise ValueError(f"{file.size:,} bytes are too many for an image")
            encoded = Path(file.path).read_bytes()
            picture = decode(encoded)
        except (OSError, ValueError) as error:
            quotes.append(f"{file.path}: {error}")
            continue
        if side:
            picture = cut(picture, middle(*picture.size), side)
        if not file.validation:
            histogram += np.reshape(picture.histogram(), (3, 256))
        images.append(to_pixels(picture) if side else np.frombuffer(encoded, np.uint8))
        good.append(file)
    return {
        "image": np.array(images, np.uint8).reshape(-1, 3, side, side) if side else np.concatenate([EMPTY, *images]),
        "end": np.cumsum([len(image) for image in images], dtype=np.int64),
        "label": np.array([file.label for file in good], np.int64),
        "validation": np.array([file.validation for file in good], bool),
        "histogram": histogram,
    } | bad_arrays(quotes)


def read_images(path: Path) -> Iterator[tuple[str, Pictures, Array]]:
    """Yield the images and labels of each part of a piece, for `write_images`."""
    image, end, label, validation = read_piece(path, "image", "end", "label", "validation")
    for part, mask in zip(PARTS, (~validation, validation), strict=True):
        if image.ndim > 1:
            yield part, image[mask], label[mask]
        else:
            begin = np.append(0, end)[:-1]
            yield part, [image[b:e].tobytes() for b, e in zip(begin[mask], end[mask], strict=True)], label[mask]
