"""`hpcdistill prepare images`: a store from a folder of images in ImageNet's layout, or from IDX files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from hpcdistill.data.arrays import Array
from hpcdistill.data.images.folder import cut_into_tasks, list_files, make_piece, read_images
from hpcdistill.data.images.idx import read_idx
from hpcdistill.data.images.store import Kind, Pictures, write_images
from hpcdistill.data.prepare.bad_records import collect
from hpcdistill.data.prepare.pieces import make_pieces, pieces_folder, read_piece, write_whole
from hpcdistill.data.prepare.split import in_validation
from hpcdistill.data.store import PARTS
from hpcdistill.errors import UserError

IDX_IMAGES = 4096  # images written at a time


def prepare_images(
    inputs: Sequence[Path],
    output: Path,
    validation: Sequence[Path] = (),
    size: int | None = None,
    max_bad: int = 0,
    processes: int | None = None,
) -> None:
    """Write a store of images.

    Args:
        inputs: a folder with one folder for each class, or two IDX files, of images and of labels.
        output: HDF5 file to write.
        validation: the same for the validation part; without it, about 5 % of the images, evenly spread.
        size: width and height in pixels of the arrays to store, from the center of each image of a folder; by default
            the files are stored encoded, unchanged.
        max_bad: maximum number of images to pass over that do not decode.
        processes: number of processes that decode a folder; by default one for each core.

    Raises:
        UserError: the input has another layout, too many images are bad, or there are too few.
    """
    if size is not None and size < 1:
        raise UserError(f"--size {size} must be at least 1 pixel")
    given = [inputs, validation] if validation else [inputs]
    if all(len(paths) == 1 and paths[0].is_dir() for paths in given):
        _prepare_folder(inputs[0], output, validation[0] if validation else None, size, max_bad, processes)
    elif all(len(paths) == 2 and not any(path.is_dir() for path in paths) for paths in given):
        if size is not None:
            raise UserError(f"--size {size} is for folders of pictures; those of IDX files are stored as they are")
        _prepare_idx(inputs, output, validation)
    else:
        found = " and ".join(" ".join(map(str, paths)) for paths in given)
        raise UserError(
            f"{found}: --input, and --validation where it is given, must each be one folder that has a folder for each "
            "class, or two IDX files, of images and of labels"
        )


def _prepare_folder(
    folder: Path, output: Path, validation: Path | None, size: int | None, max_bad: int, processes: int | None
) -> None:
    classes, files = list_files(folder, validation)
    digest = hashlib.blake2b(repr(classes).encode())
    for file in files:
        digest.update(repr(file).encode())
    with pieces_folder(output, "images", 2, size, digest.hexdigest()) as pieces:
        made = make_pieces(pieces, partial(make_piece, size), cut_into_tasks(files), processes)
        paths = collect(made, max_bad, "images")
        histogram = np.sum([read_piece(path, "histogram")[0] for path in paths], axis=0)
        kind = Kind.of(classes, (3, size, size) if size else (), histogram)
        images = (part for path in tqdm(paths, desc="joining", unit="piece") for part in read_images(path))
        _write(output, pieces, images, kind, str(folder))


def _prepare_idx(inputs: Sequence[Path], output: Path, validation: Sequence[Path]) -> None:
    images, labels = read_idx(*inputs)
    if len(labels) and labels.min() == labels.max():
        raise UserError(f"all labels of {inputs[1]} are {labels[0]}; there must be at least two classes")
    if validation:
        parts = {"train": (images, labels), "validation": read_idx(*validation)}
    else:
        chosen = in_validation(np.arange(len(images)))
        parts = {name: (images[mask], labels[mask]) for name, mask in zip(PARTS, (~chosen, chosen), strict=True)}
    _require_alike(parts)
    pixels, labels = parts["train"]
    classes = [str(label) for label in range(labels.max(initial=0) + 1)]
    kind = Kind.of(classes, pixels.shape[1:], np.bincount(pixels.ravel(), minlength=256)[None])
    with pieces_folder(output, "IDX") as pieces:
        _write(output, pieces, _cut(parts), kind, ", ".join(map(str, inputs)))


def _require_alike(parts: dict[str, tuple[Array, Array]]) -> None:
    (pixels, labels), (others, other_labels) = parts["train"], parts["validation"]
    if pixels.shape[1:] != others.shape[1:]:
        raise UserError(
            f"--validation has images of {others.shape[2]} pixels a side, but --input of {pixels.shape[2]}; they must "
            "be of one size"
        )
    unknown = set(other_labels.tolist()) - set(labels.tolist())
    if unknown:
        raise UserError(
            f"the label {min(unknown)} is seen in the validation part only; add training images of it, or choose the "
            "validation part with --validation"
        )


def _cut(parts: dict[str, tuple[Array, Array]]) -> Iterator[tuple[str, Pictures, Array]]:
    for part, (pixels, labels) in parts.items():
        for begin in tqdm(range(0, len(labels), IDX_IMAGES), desc=f"writing {part}", unit="piece"):
            yield part, pixels[begin : begin + IDX_IMAGES], labels[begin : begin + IDX_IMAGES]


def _write(output: Path, folder: Path, pieces: Iterable[tuple[str, Pictures, Array]], kind: Kind, source: str) -> None:
    sizes = write_whole(output, folder, lambda whole: write_images(whole, pieces, kind, source), "images")
    form = " × ".join(map(str, kind.shape)) or "encoded"
    print(
        f"{output}: {sizes['train']:,} training and {sizes['validation']:,} validation images of {len(kind.classes):,} "
        f"classes, {form}"
    )
