"""HDF5 store of labelled images, with a checksum on each chunk.

/                   attributes: format, version, source, identity, shape, mean, deviation
/classes            names of the classes, bytes [K]; a label is the index of one
/train/image        of arrays (`shape` is [C, S, S]): uint8 [images, C, S, S]
                    of encoded images (`shape` is []): the concatenated bytes of the files, uint8 [bytes]
/train/end          of encoded images only: the end of each file in those bytes, int64 [images]
/train/label        int32 [images]
/validation         the same

All datasets have a Fletcher-32 checksum on each chunk; HDF5 itself has none for strings of variable length. Each image
is read by itself, so that a batch can have any images.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from hpcdistill.data.arrays import Array
from hpcdistill.data.store import PARTS, StoreFile, seal
from hpcdistill.errors import UserError
from hpcdistill.storage.hdf5 import atomic_file, growing

SMALL = 64
"""Number of pixels a side up to which images are augmented by shifts and have a small model."""
CHUNK_BYTES = 1 << 16  # or one array, if that is larger; also the unit in which checksums are verified
Pictures = Array | list[bytes]
"""Images as arrays, uint8 [images, C, S, S], or encoded, each the content of a file."""


@dataclass(frozen=True)
class Kind:
    """Properties that all images of a store share."""

    classes: list[str]
    """Names of the labels."""
    shape: tuple[int, ...]
    """Shape of arrays, (C, S, S); () for encoded images, which are decoded to RGB and may have any size."""
    mean: list[float]
    """Mean of each channel, whose values are in [0, 255], over all pixels of the training part."""
    deviation: list[float]
    """Standard deviation of each channel; 1 where it is 0."""

    @classmethod
    def of(cls, classes: list[str], shape: tuple[int, ...], histogram: Array) -> Kind:
        """Return the kind with the mean and deviation of `histogram`, int64 [C, 256], the counts of each value."""
        values, count = np.arange(256), np.maximum(histogram.sum(1), 1)
        mean = histogram @ values / count
        deviation = np.sqrt(np.maximum(histogram @ values**2 / count - mean**2, 0))
        return cls(classes, shape, mean.tolist(), np.where(deviation, deviation, 1).tolist())

    @property
    def channels(self) -> int:
        """Number of channels of an image, C."""
        return len(self.mean)


def write_images(path: Path, pieces: Iterable[tuple[str, Pictures, Array]], kind: Kind, source: str) -> dict[str, int]:
    """Write a store from (part, pictures, labels) pieces, in order; memory stays bounded by the largest piece.

    Args:
        path: file to write; replaced only when all pieces are written.
        pieces: each a part, one of `PARTS`, with the images to append to it, and their labels.
        kind: properties that the images share.
        source: origin of the data, for reports.

    Returns:
        The number of images of each part.
    """
    with atomic_file(path) as (file, _):
        names = np.array([os.fsencode(name) for name in kind.classes])
        file.create_dataset("classes", data=names, chunks=True, fletcher32=True)
        parts = {name: _Part(file.create_group(name), kind.shape) for name in PARTS}
        for name, pictures, labels in pieces:
            parts[name].append(pictures, labels)
        identity = hashlib.blake2b(repr((kind.classes, kind.shape)).encode(), digest_size=16)
        for part in parts.values():
            for digest in part.digests.values():
                identity.update(digest.digest())
        facts = {"shape": np.array(kind.shape, np.int64), "mean": kind.mean, "deviation": kind.deviation}
        seal(file, ImageStore, source, identity.hexdigest(), **facts)
        return {name: part.size for name, part in parts.items()}


class _Part:
    """Part of a store that is being written."""

    def __init__(self, group: h5py.Group, shape: tuple[int, ...]) -> None:
        self.size = 0
        self._bytes = 0
        self._columns = {"image": _column(group, "image", np.uint8, *shape), "label": _column(group, "label", np.int32)}
        if not shape:
            self._columns["end"] = _column(group, "end", np.int64)
        self.digests = {name: hashlib.blake2b() for name in self._columns}  # whatever the sizes of pieces

    def append(self, pictures: Pictures, labels: Array) -> None:
        self.size += len(labels)
        new = {"image": pictures, "label": labels}
        if isinstance(pictures, list):
            new["end"] = self._bytes + np.cumsum([len(picture) for picture in pictures], dtype=np.int64)
            new["image"] = np.frombuffer(b"".join(pictures), np.uint8)
            self._bytes += len(new["image"])
        for name, column in self._columns.items():
            values = np.ascontiguousarray(new[name], column.dtype)
            column.resize(len(column) + len(values), axis=0)
            column[len(column) - len(values) :] = values
            self.digests[name].update(values.data)


def _column(group: h5py.Group, name: str, dtype: type, *shape: int) -> h5py.Dataset:
    together = max(1, CHUNK_BYTES // int(np.dtype(dtype).itemsize * np.prod(shape)))
    return growing(group, name, dtype, together, *shape)


class ImageStore(StoreFile):
    """Store of images that is open for reading; see `StoreFile`.

    Labels and the ends of encoded images are kept in memory, up to 16 bytes per image: they are read and checked once.

    Attributes:
        kind: properties that all images share.
        labels: labels of each part, int64 [images].

    Raises:
        UserError: see `StoreFile`; also if a label is out of range, or bytes do not match their checksum.
    """

    KIND, COMMAND = "a store of images", "hpcdistill prepare images --input DIR"
    FORMAT, VERSION = "hpcdistill-images", 2

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with self._intact("what it is, or the names of its classes,"):
            shape, mean, deviation = (self._attributes[name].tolist() for name in ("shape", "mean", "deviation"))
            classes = [os.fsdecode(name) for name in self._file["classes"][()]]
            if len(mean) != len(deviation) or (shape and (len(shape), shape[0]) != (3, len(mean))):
                raise ValueError(f"{shape} are not {len(mean)} channels with {len(deviation)} deviations")
        self.kind = Kind(classes, tuple(shape), mean, deviation)
        self.labels: dict[str, Array] = {}
        self._ends: dict[str, Array] = {}
        for part in PARTS:
            with self._intact(f"the labels of {part!r}"):
                self.labels[part] = self._file[part]["label"][()].astype(np.int64)
                self._require_shapes(part)
            if ((self.labels[part] < 0) | (self.labels[part] >= len(classes))).any():
                raise UserError(f"{path}: a label of {part!r} is not one of {len(classes)}; prepare the data again")

    @property
    def is_small(self) -> bool:
        """True if the images are arrays of at most `SMALL` pixels a side."""
        return bool(self.kind.shape) and self.kind.shape[-1] <= SMALL

    def size(self, part: str) -> int:
        """Return the number of images in `part`."""
        return len(self.labels[part])

    def read(self, part: str, numbers: Array) -> tuple[Pictures, Array]:
        """Return the images of `part` with these numbers, int64 [n], and their labels, int64 [n].

        Raises:
            UserError: the bytes on disk do not match their checksum.
        """
        with self._intact(f"images of {part!r}"):
            image = self._dataset(f"{part}/image")
            if self.kind.shape:
                pictures: Pictures = np.stack([image[number] for number in numbers])
            else:
                ends = self._ends[part]
                pictures = [image[ends[number] : ends[number + 1]].tobytes() for number in numbers]
        return pictures, self.labels[part][numbers]

    def _require_shapes(self, part: str) -> None:
        found = self._dataset(f"{part}/image").shape
        if self.kind.shape:
            expected = (self.size(part), *self.kind.shape)
        else:
            ends = self._ends[part] = np.append(0, self._file[part]["end"][()])
            expected = (int(ends[-1]),)
            if len(ends) != self.size(part) + 1 or (np.diff(ends) < 0).any():
                raise ValueError(f"pictures of {part!r} do not follow each other")
        if found != expected:
            raise ValueError(f"the images of {part!r} have the shape {found} instead of {expected}")
