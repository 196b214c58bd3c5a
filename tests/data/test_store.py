"""Common part of stores: complete and self-contained files are opened, others are refused by name."""

import contextlib
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

import saved_models
from hpcdistill.data.images.store import ImageStore, Kind, write_images
from hpcdistill.data.rows.store import Fields, Rows, RowStore, write_rows
from hpcdistill.data.store import PARTS
from hpcdistill.data.tokens.store import CHUNK_TOKENS, TokenStore, write_store
from hpcdistill.errors import UserError
from hpcdistill.storage import hdf5_check
from hpcdistill.storage.hdf5_check import digest
from hpcdistill.tasks.registry import open_task

pytestmark = pytest.mark.alone

TEXT = bytes(range(100)) * 1000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Write a token store of several chunks; return its path."""
    write_store(tmp_path / "data.h5", [(part, TEXT) for part in PARTS], "text")
    return tmp_path / "data.h5"


def change(path: Path, how: Callable[[h5py.File], object]) -> None:
    """Change a store and update its digest, as anyone can."""
    with h5py.File(path, "r+") as file:
        how(file)
        if "digest" in file.attrs:
            with contextlib.suppress(ValueError, MemoryError):  # refused before the damage matters
                file.attrs["digest"] = digest(file)


def write_as_older_versions_did(path: Path) -> None:
    """Write a store without checksums of its structure, and without a digest."""
    values = np.frombuffer(TEXT, np.uint8)
    with h5py.File(path, "w") as file:
        for part in PARTS:
            file.create_dataset(part, data=values, chunks=(CHUNK_TOKENS,), maxshape=(None,), fletcher32=True)
        file.attrs.update(format=TokenStore.FORMAT, version=1, vocabulary=256, source="text", identity="old")
    assert path.read_bytes()[8] == 0  # version of the superblock, and so of the other structures


# Damaged or incomplete files


def replaced(name: str, **dataset: object) -> Callable[[h5py.File], None]:
    def replace(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, **dataset)

    return replace


def linked(target: object) -> Callable[[h5py.File], None]:
    def replace(file: h5py.File) -> None:
        del file["train"]
        file["train"] = target

    return replace


SOME = np.zeros(100_000, np.uint8)
HOSTILE = {
    "link": (linked(h5py.ExternalLink("/etc/hostname", "x")), "train is a link to somewhere else"),
    "soft link": (linked(h5py.SoftLink("/validation")), "train is a link to somewhere else"),
    "loop": (lambda file: file.__setitem__("loop", file["/"]), "loop is no group and no dataset of its own"),
    "two names": (lambda file: file.__setitem__("more", file["train"]), "more is no group and no dataset of its own"),
    "external": (replaced("train", shape=5, dtype="u1", external=[("/etc/hostname", 0, 5)]), "is in other files"),
    "no chunk": (lambda file: file["train"].resize((200_000,)), "/train has 2 chunks instead of 4"),
    "huge": (lambda file: file["train"].resize((1 << 50,)), "/train has 2 chunks instead of"),
    "nothing": (replaced("train", shape=1 << 50, dtype="u1"), "/train has 0 bytes instead of"),
    "compressed": (replaced("train", data=SOME, compression="gzip"), "are compressed, or have no checksums"),
    "unchecked": (replaced("train", data=SOME, chunks=(1000,)), "are compressed, or have no checksums"),
    "strings": (replaced("train", data=["a", "b"]), "/train has .* bytes instead of"),
    "real": (replaced("train", data=np.zeros(9)), "a part is not a sequence of unsigned integers"),
    "flat": (replaced("train", data=np.zeros((3, 3), np.uint8)), "a part is not a sequence of unsigned integers"),
    "no vocabulary": (lambda file: file.attrs.pop("vocabulary"), "'vocabulary'"),
    "no version": (lambda file: file.attrs.pop("version"), "'version'"),
    "no digest": (lambda file: file.attrs.pop("digest"), "'digest'"),
}


@pytest.mark.parametrize(("how", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_what_is_not_whole_or_not_in_the_file_is_refused(
    path: Path, how: Callable[[h5py.File], object], reason: str
) -> None:
    change(path, how)
    with pytest.raises(UserError, match=f"cannot be read .*{reason}.*the file is damaged: restore it, or make one"):
        TokenStore(path)


def test_a_change_that_no_checksum_shows_is_shown_by_the_digest(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["vocabulary"] = 255
    with pytest.raises(UserError, match="its digest does not fit its content"):
        TokenStore(path)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (
            lambda file: file["train/label"].resize((99,)),
            r"the columns of 'train' have the shapes .*\(100, 2\).*\(99,\)",
        ),
        (lambda file: file.attrs.__setitem__("fields", "{}"), "Fields.* missing 2 required positional arguments"),
        (lambda file: file.attrs.__setitem__("fields", "["), "Expecting value"),
        (lambda file: file["train"].attrs.pop("bayes_log_loss"), "bayes_log_loss"),
    ],
)
def test_rows_that_do_not_fit_their_description_are_refused(
    tmp_path: Path, how: Callable[[h5py.File], object], reason: str
) -> None:
    change(saved_models.clicks(tmp_path / "rows.h5"), how)
    with pytest.raises(UserError, match=f"cannot be read .*{reason}.*the file is damaged"):
        RowStore(tmp_path / "rows.h5")


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (lambda file: file["train/end"].__setitem__(0, 99), "pictures of 'train' do not follow each other"),
        (lambda file: file["train/end"].resize((1,)), "pictures of 'train' do not follow each other"),
        (
            lambda file: file["train/image"].resize((4,)),
            r"the images of 'train' have the shape \(4,\) instead of \(5,\)",
        ),
        (lambda file: file.attrs.pop("mean"), "mean"),
        (lambda file: file.attrs.__setitem__("mean", [0.5]), "1 channels with 3 deviations"),
        (lambda file: file.attrs.__setitem__("shape", [1, 2, 2]), r"\[1, 2, 2\] are not 3 channels"),
    ],
)
def test_images_that_do_not_fit_their_description_are_refused(
    tmp_path: Path, how: Callable[[h5py.File], object], reason: str
) -> None:
    pieces = [(part, [b"abc", b"de"], np.array([0, 1])) for part in PARTS]
    write_images(tmp_path / "data.h5", pieces, Kind(["a", "b"], (), [0.0] * 3, [1.0] * 3), "")
    change(tmp_path / "data.h5", how)
    with pytest.raises(UserError, match=f"cannot be read .*{reason}.*the file is damaged"):
        ImageStore(tmp_path / "data.h5")


def test_hundreds_of_long_names_fit(tmp_path: Path) -> None:
    """HDF5 stores larger attributes elsewhere, without a checksum."""
    fields = Fields([f"{'x' * 500}{column}" for column in range(300)], {})
    rows = Rows(np.zeros((2, 300), np.float32), np.zeros((2, 0), np.int32), np.zeros(2, np.uint8))
    write_rows(tmp_path / "rows.h5", [(part, rows) for part in PARTS], fields, "")
    with RowStore(tmp_path / "rows.h5") as store:
        assert store.fields == fields


@pytest.mark.parametrize("name", [b"caf\xe9", "café".encode(), b"plain", b""])
def test_a_source_that_is_not_utf8_is_escaped(tmp_path: Path, name: bytes) -> None:
    write_store(tmp_path / "data.h5", [(part, TEXT) for part in PARTS], os.fsdecode(name))
    with TokenStore(tmp_path / "data.h5") as store:
        assert store.source == name.decode(errors="backslashreplace")


# Stores of older versions


def test_an_old_store_is_read_with_a_warning(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_task(path).store as new:
        assert new.doubt is None
    write_as_older_versions_did(path)
    with open_task(path, warns=False).store as store:
        assert isinstance(store, TokenStore)
        assert bytes(store.read("train", 0, len(TEXT)).astype(np.uint8)) == TEXT
        assert capsys.readouterr().err == ""
    open_task(path).store.close()
    assert "data.h5 was made by an older hpcdistill" in capsys.readouterr().err


def test_damage_to_the_index_of_an_old_store_is_found(path: Path) -> None:
    """A chunk with a valid checksum is in the place of another one."""
    write_as_older_versions_did(path)
    with h5py.File(path) as file:
        first, second = (file["train"].id.get_chunk_info(number).byte_offset for number in range(2))
    content = path.read_bytes()
    assert content.count(second.to_bytes(8, "little")) == 1
    path.write_bytes(content.replace(second.to_bytes(8, "little"), first.to_bytes(8, "little")))
    with pytest.raises(UserError, match="the index of the chunks of /train is damaged"):
        TokenStore(path)


def test_an_old_store_that_hdf5_takes_for_ever_over_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_as_older_versions_did(path)
    monkeypatch.setattr(hdf5_check, "LOOK_SECONDS", 0.0)
    with pytest.raises(UserError, match="HDF5 had not read its structure after 0 s"):
        TokenStore(path)


def test_an_old_store_that_hdf5_crashes_over_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_as_older_versions_did(path)
    crash = path.with_name("crash.py")
    crash.write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    monkeypatch.setattr(hdf5_check, "__file__", str(crash))
    with pytest.raises(UserError, match="HDF5 crashes over it, by signal 11"):
        TokenStore(path)


# Files that cannot be opened


def test_a_folder_is_called_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a folder; name a store, .* prepare text\|table\|criteo\|images"):
        open_task(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "data.h5")
    with pytest.raises(UserError, match="is not a regular file"):
        open_task(tmp_path / "data.h5")


def test_a_store_of_another_owner_is_not_called_broken(path: Path) -> None:
    if os.geteuid() == 0:
        os.seteuid(65534)
    else:
        path.chmod(0)
    try:
        with pytest.raises(UserError, match="permission denied; have its owner let you read it"):
            open_task(path)
    finally:
        os.seteuid(os.getuid())


READ = """
import pathlib, sys
from hpcdistill.tasks.registry import open_task
print(open_task(pathlib.Path(sys.argv[1])).store.source)
"""


@pytest.mark.launch
@pytest.mark.parametrize("locking", [None, "TRUE"])
def test_a_locked_store_is_read_or_called_locked(path: Path, locking: str | None) -> None:
    """HDF5 reads the variable at start-up: a separate process is needed."""
    environment = {**os.environ, **({"HDF5_USE_FILE_LOCKING": locking} if locking else {})}
    with path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        result = subprocess.run([sys.executable, "-c", READ, path], capture_output=True, text=True, env=environment)
    if locking:
        assert "it is locked, or its file system has no locks; set HDF5_USE_FILE_LOCKING=FALSE" in result.stderr
        assert "make one with" not in result.stderr
    else:
        assert result.stdout == "text\n"
