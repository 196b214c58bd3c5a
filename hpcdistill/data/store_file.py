"""What all stores have in common: an HDF5 file with a training and a validation part, which says what it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar

import h5py

from hpcdistill.errors import UserError

if TYPE_CHECKING:
    from typing_extensions import Self

PARTS = ("train", "validation")


def stored_format(path: Path) -> str | None:
    """The `FORMAT` of the store at `path`; None where there is no file that says it."""
    try:
        with h5py.File(path, "r") as file:
            return str(file.attrs.get("format"))
    except OSError:
        return None


class StoreFile(ABC):
    """A store, open for reading; a context manager that closes it.

    Attributes:
        source: where the data is from.
        identity: equal for two stores if and only if their data is.

    Raises:
        UserError: missing, not HDF5, truncated, or not a store of this kind that this version reads.
    """

    KIND: ClassVar[str]
    """In words, with its article."""
    COMMAND: ClassVar[str]
    """What makes one."""
    FORMAT: ClassVar[str]
    VERSION: ClassVar[int]

    def __init__(self, path: Path) -> None:
        self.path = path
        remedy = f"make one with: {self.COMMAND} --output {path}"
        try:
            self._file = h5py.File(path, "r")
        except FileNotFoundError:
            raise UserError(f"data.path = {path}: no such file; {remedy}") from None
        except OSError as error:
            raise UserError(f"data.path = {path}: not a whole HDF5 file ({error}); {remedy}") from None
        self._attributes: dict[str, Any] = dict(self._file.attrs)
        if self._attributes.get("format") != self.FORMAT or not set(PARTS) <= set(self._file):
            raise UserError(f"data.path = {path}: HDF5, but not {self.KIND}; {remedy}")
        if self._attributes["version"] > self.VERSION:
            raise UserError(
                f"data.path = {path}: store version {self._attributes['version']}, this hpcdistill reads up to "
                f"{self.VERSION}; upgrade hpcdistill or prepare the data again"
            )
        self.source = str(self._attributes["source"])
        self.identity = str(self._attributes["identity"])

    @abstractmethod
    def size(self, part: str) -> int:
        """How many of what one prediction each is made for are in `part`."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()
