r"""Restart files: one HDF5 file per group and step, atomic, checksummed, enough to go on bit by bit.

    user block (512 bytes)   "hpcdistill checkpoint 1 blake2b <hex digest of all that follows>\n"
    /<key>/…                 the state's nested dictionaries; leaves as bytes, with dtype and shape as attributes

HDF5 tools skip the user block, so the files open in h5dump and h5py like any other.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from hpcdistill.errors import UserError
from hpcdistill.hdf5 import atomic_file

State = dict[str, Any]
"""Nested dictionaries with string keys; leaves are tensors or what JSON can express."""

USER_BLOCK_NBYTES = 512
MAGIC = "hpcdistill checkpoint 1 blake2b "


class Checkpoints:
    """The checkpoints of one group in `folder`, of which the newest `keep` stay.

    Args:
        folder: made when needed.
        group: whose.
        keep: how many, at least 2, so that a damaged one has a predecessor.
        owner: what the run must have in common with a checkpoint to go on from it; JSON values by name.
    """

    def __init__(self, folder: Path, group: int, keep: int, owner: State) -> None:
        self._folder = folder
        self._group = group
        self._keep = keep
        self._owner = owner

    def save(self, step: int, state: State) -> None:
        """Write `state` as the checkpoint of `step`, then remove the oldest beyond `keep`.

        Raises:
            OSError: nothing was changed; the previous checkpoints are still there.
        """
        with atomic_file(self._folder / f"g{self._group}-step{step:010d}.h5", USER_BLOCK_NBYTES) as (file, path):
            _write(file, {"owner": self._owner, "state": state})
            file.close()
            with path.open("r+b") as raw:
                raw.write(_stamp(path))
        for old in self.paths()[self._keep :]:
            old.unlink()

    def paths(self) -> list[Path]:
        """This group's checkpoints, newest first."""
        pattern = re.compile(rf"g{self._group}-step\d{{10}}\.h5")
        return sorted((path for path in self._folder.glob("*.h5") if pattern.fullmatch(path.name)), reverse=True)

    def newest(self, strict: bool) -> State | None:
        """The newest usable state, or None where there is no checkpoint at all.

        Args:
            strict: accept only the newest checkpoint, rather than fall back to its predecessors.

        Raises:
            UserError: there are checkpoints and none is usable; with `strict`, the newest is not.
        """
        paths = self.paths()
        for path in paths:
            try:
                return self._load_own(path)
            except UserError as error:
                if strict:
                    raise UserError(f"--resume=strict: {error}") from None
                print(f"hpcdistill: warning: {error}; trying the one before", file=sys.stderr, flush=True)
        if paths:
            raise UserError(
                f"none of the {len(paths)} checkpoints of group {self._group} in {self._folder} is usable (see "
                "above); restore one, or choose another --run_dir to start afresh"
            )
        return None

    def _load_own(self, path: Path) -> State:
        content = load(path)
        for name, mine in self._owner.items():
            theirs = content["owner"].get(name)
            if theirs != mine:
                raise UserError(f"checkpoint {path} is of another run: {_difference(name, theirs, mine)}")
        state: State = content["state"]
        return state


def load(path: Path) -> State:
    """All that is in the checkpoint at `path`, tensors on the CPU.

    Raises:
        UserError: not a checkpoint, truncated, or damaged.
    """
    try:
        with path.open("rb") as raw:
            stamp = raw.read(USER_BLOCK_NBYTES).rstrip(b"\0")
        if not stamp.startswith(MAGIC.encode()):
            raise UserError(f"{path} is not a checkpoint of hpcdistill")
        if stamp != _stamp(path):
            raise UserError(f"checkpoint {path} is damaged: its checksum does not fit its content")
        with h5py.File(path, "r") as file:
            return dict(_read(file))
    except OSError as error:
        raise UserError(f"checkpoint {path} cannot be read: {error}") from None


def _difference(name: str, theirs: Any, mine: Any) -> str:
    if isinstance(theirs, list) and isinstance(mine, list):
        for before, now in zip(theirs, mine, strict=False):
            if before != now:
                return f"{name} has {before} there, {now} here"
        return f"{name} has {len(theirs)} entries there, {len(mine)} here"
    return f"{name} = {theirs} there, {mine} here"


def _stamp(path: Path) -> bytes:
    digest = hashlib.blake2b(digest_size=32)
    with path.open("rb") as raw:
        raw.seek(USER_BLOCK_NBYTES)
        while block := raw.read(1 << 20):
            digest.update(block)
    return f"{MAGIC}{digest.hexdigest()}\n".encode()


def _write(group: h5py.Group, state: State) -> None:
    for key, value in state.items():
        if isinstance(value, dict):
            _write(group.create_group(key), value)
        elif isinstance(value, torch.Tensor):
            # As bytes: HDF5 has no bfloat16, and bytes come back exactly.
            leaf = group.create_dataset(key, data=value.detach().cpu().reshape(-1).view(torch.uint8).numpy())
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
            flat = torch.from_numpy(item[()]).view(getattr(torch, item.attrs["dtype"]))
            yield key, flat.reshape(tuple(item.attrs["shape"]))
