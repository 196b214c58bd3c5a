r"""HDF5 files of nested dictionaries of tensors, written atomically, with a checksum, bit for bit.

    user block (512 bytes)   "hpcdistill <kind> 2 <bytes of the file> blake2b <hex digest of the rest of the file>\n"
    /<key>/…                 the nested dictionaries; leaves are bytes, with dtype and shape as attributes

HDF5 tools skip the user block, so that h5dump and h5py open these files like any other. Files of version 1, which lack
their size, are read as well.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from hpcdistill.errors import UserError
from hpcdistill.storage.hdf5 import atomic_file
from hpcdistill.storage.hdf5_check import ERRORS, require_whole

State = dict[str, Any]
"""Nested dictionaries with string keys; leaves are tensors or JSON values."""

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
USER_BLOCK_NBYTES = 512
VERSION = 2
PART_NBYTES = 4 << 20  # written at a time: HDF5 has one lock, and another thread may be waiting to read data


def save_state(path: Path, kind: str, state: State) -> None:
    """Write a file; it appears at `path` complete and on disk, or not at all.

    Args:
        path: the file; its folder is made.
        kind: word that says what the file is, such as "checkpoint".
        state: content of the file.

    Raises:
        OSError: the file cannot be written; the previous one at `path` is untouched.
    """
    with atomic_file(path, USER_BLOCK_NBYTES) as (file, raw):
        _write(file, state)
        file.close()
        stamp = _stamp(Path(raw.name), kind)
        raw.seek(0)
        raw.write(stamp)


def load_state(path: Path, kind: str, most: int | None = None) -> State:
    """Read a file; tensors are on the CPU.

    A damaged or foreign file can make it neither read nor allocate more bytes than the file has.

    Args:
        path: the file.
        kind: the word with which it was saved.
        most: largest size of the file in bytes; None for any.

    Raises:
        UserError: the file is of another kind or a newer format, too large, truncated, damaged, or not written by
            `save_state`.
    """
    try:
        # Non-blocking: if it is a named pipe, this must not wait for a writer.
        with FileIO(path, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as raw:
            _require_intact(raw, path, kind, most)
            return _content(raw, path, kind)
    except OSError as error:
        raise UserError(f"{kind} {path} cannot be read: {error}") from None


def _require_intact(raw: FileIO, path: Path, kind: str, most: int | None) -> None:
    status = os.fstat(raw.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{kind} {path} is no regular file")
    if most is not None and status.st_size > most:
        raise UserError(f"{kind} {path} has {status.st_size} bytes, where {most} are the most expected")
    stamp = raw.read(USER_BLOCK_NBYTES).rstrip(b"\0")
    match = re.match(rb"hpcdistill %s (\d{1,9}) " % kind.encode(), stamp)
    if not match:
        raise UserError(f"{path} is not a {kind} of hpcdistill")
    version = int(match[1])
    if version > VERSION:
        raise UserError(
            f"{path} is not a {kind} that this hpcdistill reads: its format is {version}, the newest known here is "
            f"{VERSION}; upgrade hpcdistill"
        )
    begin = _begin(kind, version, raw)
    if not stamp.startswith(begin):
        raise UserError(
            f"{kind} {path} is damaged: it does not have the {status.st_size} bytes that it was written with"
        )
    if stamp != begin + _digest(raw):
        raise UserError(f"{kind} {path} is damaged: its checksum does not fit its content")


def _content(raw: FileIO, path: Path, kind: str) -> State:
    """Read a file whose checksum is right. Anyone can compute the checksum, so the content is checked as well."""
    try:
        with h5py.File(raw, "r") as file:
            require_whole(file)
            return dict(_read(file))
    except ERRORS as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{kind} {path} was not made by hpcdistill, though its checksum is right: {reason}") from None


def on_host(state: State) -> State:
    """Return a copy of `state` in host memory that shares no memory with its tensors."""
    return {key: _on_host(value) for key, value in state.items()}


def _on_host(value: Any) -> Any:
    if isinstance(value, dict):
        return on_host(value)
    return value.detach().to("cpu", copy=True) if isinstance(value, torch.Tensor) else value


def difference(name: str, theirs: Any, mine: Any) -> str:
    """Describe where a value in a file (there) differs from this run's (here); of lists, the first difference."""
    if isinstance(theirs, list) and isinstance(mine, list):
        for before, now in zip(theirs, mine, strict=False):
            if before != now:
                return f"{name} has {before} there, {now} here"
        return f"{name} has {len(theirs)} entries there, {len(mine)} here"
    return f"{name} = {theirs} there, {mine} here"


def _stamp(path: Path, kind: str) -> bytes:
    """Return the content of the user block of a file that is complete but for that."""
    with FileIO(path) as raw:
        return _begin(kind, VERSION, raw) + _digest(raw)


def _begin(kind: str, version: int, raw: FileIO) -> bytes:
    """Return the content of the user block up to the digest."""
    size = f"{os.fstat(raw.fileno()).st_size} " if version > 1 else ""
    return f"hpcdistill {kind} {version} {size}blake2b ".encode()


def _digest(raw: FileIO) -> bytes:
    digest = hashlib.blake2b(digest_size=32)
    raw.seek(USER_BLOCK_NBYTES)
    while block := raw.read(1 << 20):
        digest.update(block)
    return f"{digest.hexdigest()}\n".encode()


def _write(group: h5py.Group, state: State) -> None:
    for key, value in state.items():
        if isinstance(value, dict):
            _write(group.create_group(key), value)
        elif isinstance(value, torch.Tensor):
            # As bytes: HDF5 has no bfloat16, and bytes are exact.
            flat = value.detach().cpu().reshape(-1).view(torch.uint8).numpy()
            leaf = group.create_dataset(key, flat.shape, flat.dtype)
            for begin in range(0, len(flat), PART_NBYTES):
                leaf[begin : begin + PART_NBYTES] = flat[begin : begin + PART_NBYTES]
            leaf.attrs["dtype"] = str(value.dtype).removeprefix("torch.")
            leaf.attrs["shape"] = np.array(value.shape, np.int64)
        else:
            leaf = group.create_dataset(key, data=np.frombuffer(json.dumps(value).encode(), np.uint8))
            leaf.attrs["dtype"] = "json"


def _read(group: h5py.Group) -> Iterator[tuple[str, Any]]:
    for key, item in group.items():
        if isinstance(item, h5py.Group):
            yield key, dict(_read(item))
        elif item.dtype != np.uint8 or item.ndim != 1:
            raise ValueError(f"{item.name} is not a sequence of bytes")
        elif item.attrs["dtype"] == "json":
            yield key, json.loads(item[()].tobytes())
        else:
            yield key, _tensor(item)


def _tensor(item: h5py.Dataset) -> torch.Tensor:
    dtype = DTYPES.get(item.attrs["dtype"])
    shape = [int(extent) for extent in item.attrs["shape"]]
    if dtype is None or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != item.size:
        raise ValueError(f"{item.name} has {item.size} bytes, not those of a {item.attrs['dtype']!r} tensor {shape}")
    tensor = torch.empty(shape, dtype=dtype)
    if tensor.numel():
        item.read_direct(tensor.view(-1).view(torch.uint8).numpy())
    return tensor
