r"""Nested dictionaries of tensors in HDF5 files: atomic, checksummed, and exact.

    user block (512 bytes)   "hpcdistill <kind> 1 blake2b <hex digest of all that follows>\n"
    /<key>/…                 the state's nested dictionaries; leaves as bytes, with dtype and shape as attributes

HDF5 tools skip the user block, so the files open in h5dump and h5py like any other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np
import torch

from hpcdistill.errors import UserError
from hpcdistill.hdf5 import atomic_file

State = dict[str, Any]
"""Nested dictionaries with string keys; leaves are tensors or what JSON can express."""

USER_BLOCK_NBYTES = 512
PART_NBYTES = 4 << 20  # written at a time: HDF5 has one lock, and another thread may want to read its data


def save_state(path: Path, kind: str, state: State) -> None:
    """Write a file of this kind, which appears whole and on disk or not at all.

    Raises:
        OSError: what was at `path` before is untouched.
    """
    with atomic_file(path, USER_BLOCK_NBYTES) as (file, raw):
        _write(file, state)
        file.close()
        stamp = _stamp(raw, kind)
        raw.seek(0)
        raw.write(stamp)


def load_state(path: Path, kind: str) -> State:
    """All that is in the file of this kind at `path`, tensors on the CPU.

    Raises:
        UserError: of another kind, truncated, or damaged.
    """
    try:
        with path.open("rb") as raw:
            stamp = raw.read(USER_BLOCK_NBYTES).rstrip(b"\0")
            if not stamp.startswith(_magic(kind)):
                raise UserError(f"{path} is not a {kind} of hpcdistill")
            if stamp != _stamp(raw, kind):
                raise UserError(f"{kind} {path} is damaged: its checksum does not fit its content")
        with h5py.File(path, "r") as file:
            return dict(_read(file))
    except OSError as error:
        raise UserError(f"{kind} {path} cannot be read: {error}") from None


def on_host(state: State) -> State:
    """A copy in the host's memory, which stays as it is whatever becomes of the tensors in `state`."""
    return {key: _on_host(value) for key, value in state.items()}


def _on_host(value: Any) -> Any:
    if isinstance(value, dict):
        return on_host(value)
    return value.detach().to("cpu", copy=True) if isinstance(value, torch.Tensor) else value


def difference(name: str, theirs: Any, mine: Any) -> str:
    """In words, where a value in a file differs from one's own."""
    if isinstance(theirs, list) and isinstance(mine, list):
        for before, now in zip(theirs, mine, strict=False):
            if before != now:
                return f"{name} has {before} there, {now} here"
        return f"{name} has {len(theirs)} entries there, {len(mine)} here"
    return f"{name} = {theirs} there, {mine} here"


def _magic(kind: str) -> bytes:
    return f"hpcdistill {kind} 1 blake2b ".encode()


def _stamp(raw: IO[bytes] | FileIO, kind: str) -> bytes:
    digest = hashlib.blake2b(digest_size=32)
    raw.seek(USER_BLOCK_NBYTES)
    while block := raw.read(1 << 20):
        digest.update(block)
    return _magic(kind) + f"{digest.hexdigest()}\n".encode()


def _write(group: h5py.Group, state: State) -> None:
    for key, value in state.items():
        if isinstance(value, dict):
            _write(group.create_group(key), value)
        elif isinstance(value, torch.Tensor):
            # As bytes: HDF5 has no bfloat16, and bytes come back exactly.
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
        elif item.attrs["dtype"] == "json":
            yield key, json.loads(item[()].tobytes())
        else:
            tensor = torch.empty(tuple(item.attrs["shape"]), dtype=getattr(torch, item.attrs["dtype"]))
            if tensor.numel():
                item.read_direct(tensor.view(-1).view(torch.uint8).numpy())
            yield key, tensor
