"""Ownership of a run folder: a second start is refused before it changes anything."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpcdistill.errors import UserError
from hpcdistill.storage.run_dir import RunDir
from hpcdistill.training import owner
from hpcdistill.training.owner import Claim

pytestmark = pytest.mark.alone


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("HEARTBEAT_SECONDS", 0.05), ("STALE_SECONDS", 1.0), ("LOOK_SECONDS", 0.02)):
        monkeypatch.setattr(owner, name, seconds)


def path_of(folder: Path) -> Path:
    return folder / "owner-g0.json"


def write(folder: Path, age: float = 0.0, **facts: Any) -> Path:
    """Write the owner file of another process."""
    path = path_of(folder)
    path.write_text(json.dumps(owner._this_process() | facts))
    os.utime(path, (time.time() - age,) * 2)
    return path


@pytest.fixture
def ended_pid() -> int:
    """Return the PID of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """Return a folder that a process on another host seems to own and renew."""
    path, ended = write(tmp_path, place="another", host="node7", pid=4711, slurm_job="12"), threading.Event()

    def renew() -> None:
        while not ended.wait(0.05):
            os.utime(path)

    thread = threading.Thread(target=renew)
    thread.start()
    yield tmp_path
    ended.set()
    thread.join()


def test_a_second_owner_is_refused_until_the_first_releases(tmp_path: Path) -> None:
    first, second = Claim(RunDir(tmp_path), 0), Claim(RunDir(tmp_path), 0)
    first.take()
    before = path_of(tmp_path).read_bytes()
    with pytest.raises(UserError, match=rf"pid {os.getpid()} on .* last said so \d s ago; end that run \(kill \d+"):
        second.take()
    second.release()  # it never owned the folder
    assert path_of(tmp_path).read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["owner-g0.json"]
    first.release()
    assert list(tmp_path.iterdir()) == []
    third = Claim(RunDir(tmp_path), 0)
    third.take()
    third.release()


def test_groups_have_owners_of_their_own(tmp_path: Path) -> None:
    claims = [Claim(RunDir(tmp_path), group) for group in (0, 1)]
    for claim in claims:
        claim.take()
    for claim in claims:
        claim.release()


def test_an_owner_whose_process_has_ended_is_replaced_at_once(tmp_path: Path, ended_pid: int) -> None:
    write(tmp_path, pid=ended_pid)
    assert_replaced(tmp_path)


def test_a_number_that_another_process_has_got_is_no_owner(tmp_path: Path) -> None:
    write(tmp_path, process_start="1")
    assert_replaced(tmp_path)


def test_an_owner_on_another_host_is_alive_while_its_file_is_renewed(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "STALE_SECONDS", 100.0)
    with pytest.raises(UserError, match=r"pid 4711 on node7 \(Slurm job 12, since .*; end that run \(scancel 12\)"):
        Claim(RunDir(elsewhere), 0).take()


@pytest.mark.parametrize("age", [-1000.0, 0.0, 1000.0])  # the clocks of hosts may differ
def test_an_owner_on_another_host_that_is_silent_is_replaced(age: float, tmp_path: Path) -> None:
    write(tmp_path, age, place="another")
    assert_replaced(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": "x", "place": 3}', b"\xff" * 100_000])
def test_a_damaged_file_is_replaced_once_it_is_old(content: bytes, tmp_path: Path) -> None:
    path_of(tmp_path).write_bytes(content)
    assert_replaced(tmp_path)


def test_a_pipe_in_its_place_is_replaced_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(path_of(tmp_path))
    assert_replaced(tmp_path)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("mine")
    path_of(tmp_path).symlink_to(target)
    with pytest.raises(UserError, match="remove what is in its place"):
        Claim(RunDir(tmp_path), 0).take()
    assert target.read_text() == "mine"


def test_of_two_that_start_at_once_one_stays(tmp_path: Path, ended_pid: int) -> None:
    for _ in range(20):
        write(tmp_path, pid=ended_pid)
        claims = [Claim(RunDir(tmp_path), 0) for _ in range(2)]
        taken: list[Claim] = []

        def take(claim: Claim, taken: list[Claim] = taken) -> None:
            try:
                claim.take()
            except UserError:
                return
            taken.append(claim)

        threads = [threading.Thread(target=take, args=[claim]) for claim in claims]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(taken) == 1
        taken[0].release()


def test_who_was_replaced_while_it_stood_still_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[BaseException] = []
    monkeypatch.setattr(owner, "end_job", ended.append)
    first = Claim(RunDir(tmp_path), 0)
    first.take()
    other = write(tmp_path, host="node7").read_bytes()
    while not ended:  # bounded by the test's timeout
        time.sleep(0.01)
    first.release()
    assert "has been taken over by pid" in str(ended[0])
    assert path_of(tmp_path).read_bytes() == other


def test_a_folder_that_is_removed_is_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    claim = Claim(RunDir(folder), 0)
    claim.take()
    path_of(folder).unlink()
    folder.rmdir()
    while not path_of(folder).exists():  # bounded by the test's timeout
        time.sleep(0.01)
    claim.release()
    assert list(folder.iterdir()) == []
    assert "is gone, and with it perhaps other files of the run" in capsys.readouterr().err


def assert_replaced(folder: Path) -> None:
    claim = Claim(RunDir(folder), 0)
    claim.take()
    assert json.loads(path_of(folder).read_bytes())["pid"] == os.getpid()
    claim.release()
    assert list(folder.iterdir()) == []
