"""Atomic files: complete or absent, and never written through a link."""

import contextlib
import os
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path

import h5py
import pytest

from hpcdistill.errors import UserError
from hpcdistill.reports.report import write_report
from hpcdistill.reports.tables import write_text
from hpcdistill.storage import whole_file
from hpcdistill.storage.hdf5 import atomic_file
from hpcdistill.storage.metrics import Metrics
from hpcdistill.storage.state_file import save_state
from hpcdistill.storage.whole_file import open_to_append, remove_temporary_files, whole_path, write_whole
from metrics_files import write

pytestmark = pytest.mark.alone


def write_hdf5(path: Path) -> None:
    with atomic_file(path) as (file, _):
        file.attrs["by"] = "us"


def write_metrics(path: Path) -> None:
    Metrics(path, {"group": 0}, step=0).close()


def write_page(path: Path) -> None:
    run = path.parent / "run"
    run.mkdir()
    about = {"config": {"data": {"batch_size": 1}}, "ranks_per_group": 1, "parameters": 1, "unit": "token"}
    write(run, 0, {"step": 400, "seconds": 40.0, "validation_loss": 1.5}, **about, data_source="a book")
    write_report([path.parent / "run"], path)


WRITERS = {
    "text": lambda path: write_whole(path, "ours"),
    "HDF5": write_hdf5,
    "checkpoint": lambda path: save_state(path, "test", {"step": 1}),
    "metrics": write_metrics,
    "report": write_page,
    "results": lambda path: write_text(path, "{}", "--json"),
}
written = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


@written
def test_a_link_is_replaced_and_its_target_untouched(tmp_path: Path, write: Callable[[Path], None]) -> None:
    precious, path = tmp_path / "precious", tmp_path / "file"
    precious.write_text("precious")
    path.symlink_to(precious)
    write(path)
    assert precious.read_text() == "precious"
    assert not path.is_symlink()
    assert path.stat().st_size > 0


@written
def test_a_link_at_the_temporary_name_is_not_followed(
    tmp_path: Path, write: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refuse it even if the random name was guessed; metrics remove it first, as a temporary file."""
    monkeypatch.setattr(whole_file.secrets, "token_hex", lambda nbytes: "0" * 2 * nbytes)
    victim, path = tmp_path / "victim", tmp_path / "file"
    (tmp_path / f".file.{'0' * 16}").symlink_to(victim)
    with contextlib.suppress(OSError, UserError):
        write(path)
    assert not victim.exists()
    assert not path.is_symlink()


@written
def test_a_file_has_the_rights_that_the_umask_leaves(tmp_path: Path, write: Callable[[Path], None]) -> None:
    before = os.umask(0o027)
    try:
        write(tmp_path / "file")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="it exists and is no regular file"):
        write_whole(pipe, "ours")
    assert pipe.is_fifo()


def test_a_failure_leaves_what_was_there_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, b"before")
    with pytest.raises(ZeroDivisionError), whole_file.whole_file(path) as file:
        file.write(b"half" * (1 // 0))
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_text_that_names_a_file_which_is_not_utf8_is_written(tmp_path: Path) -> None:
    write_whole(tmp_path / "file", f"é {os.fsdecode(b'caf' + bytes([0xE9]))}")
    assert (tmp_path / "file").read_text(encoding="utf-8") == r"é caf\udce9"


def test_nothing_is_appended_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic links"):
        open_to_append(tmp_path / "link")
    assert not (tmp_path / "victim").exists()


def test_litter_of_this_file_only_is_removed(tmp_path: Path) -> None:
    litter, others = f".[a].{'0f' * 8}", ["[a]", f".a.{'0f' * 8}", ".[a].mine"]
    for name in (litter, *others):
        (tmp_path / name).touch()
    remove_temporary_files(tmp_path / "[a]")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)


@pytest.mark.parametrize("write", [write_hdf5, partial(save_state, kind="test", state={"step": 1})])
def test_hdf5_writes_structures_with_checksums(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path / "file")
    with h5py.File(tmp_path / "file") as file:
        begin = file.userblock_size
    assert (tmp_path / "file").read_bytes()[begin + 8] == 3  # the version of the superblock, which implies the others


def make_folder(path: Path) -> None:
    (path / "inner").mkdir(parents=True)
    (path / "inner" / "file").write_text("ours")


@pytest.mark.parametrize("make", [make_folder, lambda path: path.write_text("ours")])
def test_a_path_appears_when_it_is_complete_or_not_at_all(tmp_path: Path, make: Callable[[Path], None]) -> None:
    target = tmp_path / "new" / "target"
    with contextlib.suppress(KeyError), whole_path(target) as path:
        make(path)
        raise KeyError
    assert not list(target.parent.iterdir())
    with whole_path(target) as path:
        make(path)
        assert not target.exists()
    assert list(target.parent.iterdir()) == [target]
    assert (target / "inner" / "file" if target.is_dir() else target).read_text() == "ours"
