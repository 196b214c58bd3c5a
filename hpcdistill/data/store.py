"""Common part of all stores: an HDF5 file with a training and a validation part, which names its format.

/                   attributes: format, version, source, identity, digest; others by kind

From version 2 on, checksums cover all of a store: HDF5's structures and the chunks of datasets have their own, and
`digest` covers the rest. Text in attributes is UTF-8 of a fixed length.
"""

from __future__ import annotations

import errno
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar

import h5py

from hpcdistill.errors import UserError
from hpcdistill.storage.hdf5 import text
from hpcdistill.storage.hdf5_check import ERRORS, SIGNATURE, digest, look_apart, require_whole

if TYPE_CHECKING:
    from typing_extensions import Self

PARTS = ("train", "validation")
ANY_COMMAND = "hpcdistill prepare text|table|criteo|images --input PATH"
DIGEST_SINCE = 2  # version of the store
CHECKSUMS_SINCE = 2  # version of HDF5's superblock


def seal(file: h5py.File, kind: type[StoreFile], source: str, identity: str, **attributes: Any) -> None:
    r"""Write the attributes of a store whose data is complete, and a digest of everything that has no checksum.

    Args:
        file: the store.
        kind: class of the store.
        source: origin of the data. Bytes of file names that are not UTF-8 are escaped: `caf\xe9.csv`.
        identity: digest of the data.
        attributes: further attributes of the root; text as `str`.
    """
    source = source.encode(errors="surrogateescape").decode(errors="backslashreplace")
    facts = {"format": kind.FORMAT, "version": kind.VERSION, "source": source, "identity": identity, **attributes}
    file.attrs.update({name: text(fact) if isinstance(fact, str) else fact for name, fact in facts.items()})
    file.attrs["digest"] = text(digest(file))


def stored_format(path: Path) -> str | None:
    """Return the `FORMAT` of the store at `path`; None if the file names none.

    Raises:
        UserError: the file is missing, unreadable or not HDF5.
    """
    remedy = f"make one with: {ANY_COMMAND} --output {path}"
    with _opened(path, remedy) as file:
        try:
            return _attributes(file).get("format")
        except ERRORS as error:
            raise _damaged(path, "what it is", error, remedy) from None


class Store(ABC):
    """Training and validation data that is open for reading; a context manager that closes it.

    Attributes:
        setting: key of the configuration that names the data, with its value, for messages.
        source: origin of the data.
        identity: digest of the data.
    """

    KIND: ClassVar[str]
    """Name of the kind of data in messages, with its article."""

    setting: str
    source: str
    identity: str

    @property
    def doubt(self) -> str | None:
        """Warning that damage may be undetected; None if there is no reason for one."""
        return None

    @abstractmethod
    def size(self, part: str) -> int | None:
        """Return the number of predictions that `part` has targets for, or of its examples; None if it is unknown."""

    @abstractmethod
    def close(self) -> None:
        """Release what is open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()


class StoreFile(Store):
    """Store in an HDF5 file. Two stores have equal identities if and only if their data is equal.

    Raises:
        UserError: the file is missing, not HDF5, truncated, damaged, of another kind, or of a newer version.
    """

    COMMAND: ClassVar[str]
    """Command that makes such a store."""
    FORMAT: ClassVar[str]
    """Name of the format, stored in the file."""
    VERSION: ClassVar[int]

    def __init__(self, path: Path) -> None:
        self.path = path
        self.setting = f"data.path = {path}"
        self._remedy = f"make one with: {self.COMMAND} --output {path}"
        self._file = _opened(path, self._remedy)
        self._datasets: dict[str, h5py.Dataset] = {}
        with self._intact("what it is"):
            self._attributes = _attributes(self._file)
            if self._attributes.get("format") != self.FORMAT or not set(PARTS) <= set(self._file):
                raise UserError(f"data.path = {path}: HDF5, but not {self.KIND}; {self._remedy}")
            self._version = int(self._attributes["version"])
            if self._version > self.VERSION:
                raise UserError(
                    f"data.path = {path}: store version {self._version}, this hpcdistill reads up to {self.VERSION}; "
                    "upgrade hpcdistill or prepare the data again"
                )
            if self._version >= DIGEST_SINCE and self._attributes["digest"] != digest(self._file):
                raise ValueError("its digest does not fit its content")
            self.source = str(self._attributes["source"])
            self.identity = str(self._attributes["identity"])

    @abstractmethod
    def size(self, part: str) -> int:
        """Return the number of predictions that `part` has targets for: its tokens, rows or images."""

    @property
    def doubt(self) -> str | None:
        """Warning that damage may be undetected, for a store older than the checksums; None for others."""
        if self._version >= DIGEST_SINCE:
            return None
        return (
            f"{self.setting} was made by an older hpcdistill, without checksums beside those of the data: "
            "damage may be undetected; prepare the data again"
        )

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _dataset(self, name: str) -> h5py.Dataset:
        """Return the dataset of this name, which is looked up once: that takes as long as reading a sequence."""
        if name not in self._datasets:
            self._datasets[name] = self._file[name]
        return self._datasets[name]

    @contextmanager
    def _intact(self, what: str) -> Iterator[None]:
        """Turn errors that h5py raises for damage into a `UserError`: `what` cannot be read."""
        try:
            yield
        except ERRORS as error:
            raise _damaged(self.path, what, error, self._remedy) from None


def _opened(path: Path, remedy: str) -> h5py.File:
    """Open a complete HDF5 file, without locks, which stores do not need and some file systems do not have.

    Raises:
        UserError: the file cannot be opened; `remedy` is the command that makes one.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if path.is_dir() else "not a regular file"
            raise UserError(f"data.path = {path} is {kind}; name a store, which is a file; {remedy}")
        with path.open("rb") as raw:
            begin = raw.read(len(SIGNATURE) + 1)
        if not begin.startswith(SIGNATURE):
            raise UserError(f"data.path = {path}: not a complete HDF5 file; {remedy}")
        if begin[-1] < CHECKSUMS_SINCE and (found := _look_apart(path, status.st_mtime_ns, status.st_size)):
            raise ValueError(found)
        file = h5py.File(path, "r", locking=False)
        try:
            require_whole(file)
        except ERRORS:
            file.close()
            raise
        return file
    except ERRORS as error:
        reason = _REASONS.get(error.errno or 0) if isinstance(error, OSError) else None
        if reason is None:
            raise _damaged(path, "its structure", error, remedy) from None
        raise UserError(f"data.path = {path}: {reason.format(remedy=remedy)}") from None


_LOCKED = "it is locked, or its file system has no locks; set HDF5_USE_FILE_LOCKING=FALSE, which asks for none"
_REASONS = {
    errno.ENOENT: "no such file; {remedy}",
    errno.EACCES: "permission denied; have its owner let you read it, and the folders that it is in",
    errno.ESTALE: "stale file handle, as the file has been replaced meanwhile; start again",
    **dict.fromkeys((errno.EAGAIN, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP), _LOCKED),
}


@lru_cache
def _look_apart(path: Path, changed: int, size: int) -> str:
    """Check a file by `look_apart` once, until it changes."""
    return look_apart(path)


def _attributes(file: h5py.File) -> dict[str, Any]:
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in file.attrs.items()}


def _damaged(path: Path, what: str, error: object, remedy: str) -> UserError:
    reason = " ".join(str(error).split())
    return UserError(f"{path}: {what} cannot be read ({reason}); the file is damaged: restore it, or {remedy}")
