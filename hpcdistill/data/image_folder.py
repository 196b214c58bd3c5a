"""A folder of pictures in ImageNet's layout, with a folder for each class, read piece by piece."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from hpcdistill.data.bad import bad_ones
from hpcdistill.data.hashing import in_validation
from hpcdistill.data.image_store import Array, Pictures
from hpcdistill.data.picture import cut, decode, middle, to_pixels
from hpcdistill.data.pieces import Piece, read_piece
from hpcdistill.data.store_file import PARTS
from hpcdistill.errors import UserError, suggestion, warn

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
PIECE_IMAGES = 256
PIECE_BYTES = 1 << 25  # of files
EMPTY = np.empty(0, np.uint8)


class File(NamedTuple):
    """One that should be a picture."""

    path: str
    label: int
    validation: bool
    size: int  # bytes
    changed: int  # when, in ns


# What there is


def list_files(folder: Path, validation: Path | None) -> tuple[list[str], list[File]]:
    """The names of the classes, sorted, and the files in a fixed order.

    Args:
        folder: has a folder for each class, in which pictures lie at any depth.
        validation: one like it for the validation part; without it a hash of each path in `folder` tells its part.

    Raises:
        UserError: a folder cannot be read, or has not what it should have; a class has no training pictures.
    """
    try:
        return _list(folder, validation)
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}; check --input and --validation") from None


def _list(folder: Path, validation: Path | None) -> tuple[list[str], list[File]]:
    classes = _class_names(folder)
    if validation is None:
        files = [*_files(folder, classes, classes, _by_hash)]
        _require_training(folder, classes, files)
        return classes, files
    chosen = _class_names(validation)
    unknown = sorted(set(chosen) - set(classes))
    if unknown:
        raise UserError(
            f"--validation {validation} has a class {unknown[0]!r}, which --input {folder} has not"
            f"{suggestion(unknown[0], classes)}; both need the same names of folders"
        )
    training = _files(folder, classes, classes, lambda paths: np.zeros(len(paths), bool))
    return classes, [*training, *_files(validation, chosen, classes, lambda paths: np.ones(len(paths), bool))]


def _class_names(folder: Path) -> list[str]:
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise UserError(f"{folder} has no folders in it; it needs one for each class, with the pictures of it")
    return names


def _files(
    folder: Path, names: list[str], classes: list[str], validation: Callable[[list[str]], Array]
) -> Iterator[File]:
    """The pictures of the classes called `names`; `validation` tells which paths in the folder are for that part."""
    labels, others = {name: label for label, name in enumerate(classes)}, list[str]()
    for name in tqdm(names, desc=f"listing {folder.name}", unit="class"):
        pictures = []
        for entry in _walk(folder / name):
            if entry.name.lower().endswith(SUFFIXES):
                pictures.append(entry)
            else:
                others.append(entry.path)
        if not pictures:
            raise UserError(f"{folder / name} has no pictures in it ({', '.join(SUFFIXES)}); add some, or remove it")
        chosen = validation([os.path.relpath(entry.path, folder) for entry in pictures]).tolist()
        for entry, taken in zip(pictures, chosen, strict=True):
            stat = entry.stat()
            yield File(entry.path, labels[name], taken, stat.st_size, stat.st_mtime_ns)
    if others:
        warn(f"passed over in {folder}, as their names are not those of pictures: {len(others)}, such as {others[0]}")


def _walk(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    """All files at any depth in a fixed order, hidden ones left out."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(entry.path)
        else:
            yield entry


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


# What is read


def cut_into_tasks(files: list[File]) -> Iterator[list[File]]:
    """Some files for each piece, in order; shows how far it is."""
    with tqdm(desc="reading", total=len(files), unit="image") as bar:
        begin = size = 0
        for end, file in enumerate(files, 1):
            size += file.size
            if end - begin == PIECE_IMAGES or size >= PIECE_BYTES or end == len(files):
                yield files[begin:end]
                bar.update(end - begin)
                begin, size = end, 0


def make_piece(side: int | None, files: list[File]) -> Piece:
    """The piece of some files; what cannot be read or decoded is bad, and so nothing that does not decode is stored.

    image: uint8 [images, 3, side, side], or without `side` the files' bytes one behind the other; end: int64, where
    each ends there; label: int64; histogram: int64 [3, 256], how often each value occurs in the training part.
    """
    good, images, quotes = list[File](), [], list[str]()
    histogram = np.zeros((3, 256), np.int64)
    for file in files:
        try:
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
    } | bad_ones(quotes)


def read_images(path: Path) -> Iterator[tuple[str, Pictures, Array]]:
    """What a piece has for each part, as `write_images` takes it."""
    image, end, label, validation = read_piece(path, "image", "end", "label", "validation")
    for part, mask in zip(PARTS, (~validation, validation), strict=True):
        if image.ndim > 1:
            yield part, image[mask], label[mask]
        else:
            begin = np.append(0, end)[:-1]
            yield part, [image[b:e].tobytes() for b, e in zip(begin[mask], end[mask], strict=True)], label[mask]
