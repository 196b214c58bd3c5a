"""Damaged stores, and files that are not stores."""

from collections.abc import Callable
from pathlib import Path

import h5py

DAMAGES = ["missing", "text", "truncated", "foreign", "newer"]


def make_damaged_store(path: Path, damage: str, write: Callable[[Path], object]) -> None:
    """Write a store of more than 50,000 bytes to `path` by `write`, then damage it by one of `DAMAGES`."""
    if damage == "text":
        path.write_text("no HDF5")
    elif damage == "foreign":
        h5py.File(path, "w").close()
    elif damage != "missing":
        write(path)
        if damage == "truncated":
            path.write_bytes(path.read_bytes()[:50_000])
        else:
            with h5py.File(path, "a") as file:
                file.attrs["version"] = 99
