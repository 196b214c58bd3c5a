"""Exchange through files: snapshots are whole, and no group waits for one that is absent."""

import errno
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from random import Random
from threading import Event
from typing import NoReturn

import pytest
import torch
from torch import nn

from constant_model import Constant
from hpcdistill.distributed.communicator import Communicator
from hpcdistill.distributed.groups import Groups
from hpcdistill.errors import UserError
from hpcdistill.exchange import files
from hpcdistill.exchange.files import KEEP, KIND, FilesExchange
from hpcdistill.exchange.weights import WeightPayload
from hpcdistill.storage.state_file import load_state, save_state
from killed_writer import kill_at_random

Join = Callable[..., FilesExchange]


@pytest.fixture
def folder(tmp_path: Path, world: Communicator) -> Path:
    """Return a folder that is the same on every rank."""
    return world.bcast(tmp_path) / "exchange"


@pytest.fixture
def join(folder: Path, world: Communicator, monkeypatch: pytest.MonkeyPatch) -> Iterator[Join]:
    """Return `join(group, model)`, which makes this world one of three groups; a test can be several of them."""
    monkeypatch.setattr(files, "POLL_SECONDS", 0.01)
    joined: list[FilesExchange] = []

    def make(group: int, model: nn.Module, peers: tuple[int, ...] = (), codec: str = "fp32") -> FilesExchange:
        exchange = FilesExchange(
            Groups.alone(world, group, 3, torch.device("cpu")), WeightPayload(model, codec), folder
        )
        exchange.set_peers(list(peers))
        joined.append(exchange)
        return exchange

    yield make
    for exchange in joined:
        exchange.abandon()


def publish(exchange: FilesExchange, model: Constant, step: int) -> None:
    """Publish a snapshot, and wait until its file can be read."""
    model.become(step)
    while not exchange.publish(step):  # bounded by the test's timeout, as all loops here
        time.sleep(1e-3)
    while not exchange._comm.bcast(exchange._offered is None):
        time.sleep(1e-3)


def news(exchange: FilesExchange, wanted: Callable[[dict[int, int]], bool] = bool) -> dict[int, int]:
    """Collect until the newest steps, by peer, are as wanted; check that each snapshot is of the step it claims."""
    replica, steps = Constant(), {}
    while not wanted(steps):
        for snapshot in exchange.collect():
            exchange._payload.load(snapshot.shards, replica)
            assert [*replica.weights.aminmax(), *replica.counts.aminmax()] == [snapshot.step] * 4
            steps[snapshot.peer] = snapshot.step
        time.sleep(1e-3)
    return steps


def nothing_until(exchange: FilesExchange, done: Callable[[], bool]) -> bool:
    """Collect until rank 0 is `done`; return False at a snapshot."""
    while not exchange._comm.bcast(done()):
        if list(exchange.collect()):
            return False
        time.sleep(1e-3)
    return True


def nothing_for(exchange: FilesExchange, seconds: float = 0.3) -> bool:
    end = time.monotonic() + seconds
    return nothing_until(exchange, lambda: time.monotonic() > end)


def test_the_newest_arrives_and_the_oldest_go(join: Join, folder: Path, world: Communicator) -> None:
    model = Constant()
    writer, reader = join(0, model), join(1, Constant(), peers=(0,))
    for step in range(10, 110, 10):
        publish(writer, model, step)
    assert news(reader, lambda steps: steps.get(0) == 100) == {0: 100}
    world.Barrier()
    assert [path.name for path in sorted(folder.iterdir())] == [f"g0-{n:010d}.h5" for n in range(11 - KEEP, 11)]


def test_the_log_has_a_line_for_each_publish_and_fetch(
    join: Join, world: Communicator, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "hpcdistill")
    model = Constant()
    writer, reader = join(0, model), join(1, Constant(), peers=(0,))
    publish(writer, model, 7)
    assert news(reader) == {0: 7}
    if world.rank == 0:
        nbytes = WeightPayload(model).nbytes(0, 1)
        lines = [f"group 0: published step 7, {nbytes} bytes", f"group 1: fetched step 7 of group 0, {nbytes} bytes"]
        assert [record.getMessage() for record in caplog.records] == lines


def test_absent_peers_are_not_waited_for(join: Join) -> None:
    model = Constant()
    alone = join(1, model, peers=(0, 2))
    publish(alone, model, 1)
    assert nothing_for(alone)
    alone.free()


def test_a_peer_that_begins_again_at_an_earlier_step_is_heard(join: Join) -> None:
    """Take snapshots of any step: a peer may be behind, or ahead."""
    model = Constant()
    reader = join(1, Constant(), peers=(0,))
    first = join(0, model)
    publish(first, model, 500)
    assert news(reader) == {0: 500}
    first.free()
    again = join(0, model)
    publish(again, model, 450)
    assert news(reader) == {0: 450}


def test_only_the_peers_that_were_set_are_read(join: Join) -> None:
    model = Constant()
    publish(join(0, model), model, 1)
    publish(join(2, model), model, 2)
    reader = join(1, Constant(), peers=(2,))
    assert news(reader) == {2: 2}
    reader.set_peers([0])
    assert news(reader) == {0: 1}
    assert nothing_for(reader)


@pytest.mark.parametrize("damage", [lambda content: content[:-100], lambda content: b"", lambda content: b"x" * 5000])
def test_a_damaged_file_is_passed_over(
    damage: Callable[[bytes], bytes],
    join: Join,
    folder: Path,
    world: Communicator,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = Constant()
    writer, reader = join(0, model), join(1, Constant())
    publish(writer, model, 1)
    if world.rank == 0:
        path = folder / "g0-0000000001.h5"
        path.write_bytes(damage(path.read_bytes()))
    world.Barrier()
    reader.set_peers([0])
    assert nothing_until(reader, lambda: "group 1 takes nothing from group 0 for now" in caplog.text)
    publish(writer, model, 2)
    assert news(reader) == {0: 2}
    if world.rank == 0:
        assert caplog.text.count("group 1 takes nothing from group 0 for now") == 1


WIRE = torch.zeros(8, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"codec": None}, "codec = None there, fp32 here"),
        ({"tensors": WIRE}, "tensors = "),
        ({"groups": 4}, "groups = 4 there, 3 here"),
        ({"wire": WIRE}, r"a payload of [8] torch.uint8, where ["),
        ({"wire": torch.zeros(8)}, "a payload of [8] torch.float32"),
        ({"wire": [1, 2]}, "a payload of list"),
        ({"step": "ten"}, "step = 'ten', where a count of steps was expected"),
        ({"step": 1.5}, "step = 1.5"),
        ({"step": True}, "step = True"),
        ({"step": None}, "step = None"),
        ({"step": -5}, "step = -5"),
        ({"step": 2**70}, f"step = {2**70}"),
        ({"step": {"a": 1}}, "step = {'a': 1}"),
    ],
)
def test_a_whole_file_that_is_no_snapshot_is_passed_over(
    changed: dict[str, object],
    reason: str,
    join: Join,
    folder: Path,
    world: Communicator,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Check the content too: anyone can compute the checksum."""
    model = Constant()
    publish(join(0, model), model, 1)
    if world.rank == 0:
        state = load_state(folder / "g0-0000000001.h5", KIND) | changed
        for number in (2, 10**17):
            save_state(folder / f"g0-{number:010d}.h5", KIND, {k: v for k, v in state.items() if v is not None})
    world.Barrier()
    assert news(join(1, Constant(), peers=(0,))) == {0: 1}
    if world.rank == 0:
        said = capsys.readouterr().err
        assert said.count("group 1 takes nothing from group 0 for now") == 1
        assert reason in said


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_loop(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize("make", [make_pipe, make_loop, Path.mkdir])
def test_pipes_links_and_folders_are_neither_read_nor_waited_for(
    make: Callable[[Path], None], join: Join, folder: Path, world: Communicator
) -> None:
    model = Constant()
    publish(join(0, model), model, 1)
    if world.rank == 0:
        make(folder / "g0-0000000009.h5")
    world.Barrier()
    reader = join(1, Constant(), peers=(0,))
    assert news(reader) == {0: 1}
    reader.free()


def test_a_file_server_that_does_not_answer_is_given_up(
    join: Join, folder: Path, world: Communicator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Skip publishing, and wait at the end for a limited time."""
    asked, answers = Event(), Event()

    def load(*_: object, **__: object) -> NoReturn:
        asked.set()
        answers.wait()
        raise UserError("late")

    monkeypatch.setattr(files, "load_state", load)
    monkeypatch.setattr(files, "FREE_SECONDS", 0.1)
    model = Constant()
    publish(join(0, model), model, 1)
    reader = join(1, model, peers=(0,))
    if world.rank == 0:
        assert asked.wait(60)
    world.Barrier()
    assert reader.publish(1)
    assert not reader.publish(2)
    reader.free()
    answers.set()
    if world.rank == 0:
        assert f"group 1: {folder} has not answered in 0 s; it is given up" in capsys.readouterr().err


def test_a_folder_that_was_emptied_is_read_again(join: Join, folder: Path, world: Communicator) -> None:
    model = Constant()
    reader, first = join(1, Constant(), peers=(0,)), join(0, model)
    for step in (1, 2, 3):
        publish(first, model, step)
    assert news(reader, lambda steps: steps.get(0) == 3) == {0: 3}
    first.free()
    if world.rank == 0:
        for path in folder.iterdir():
            path.unlink()
    world.Barrier()
    publish(join(0, model), model, 4)
    assert news(reader) == {0: 4}


def test_a_peer_with_another_model_or_codec_is_named_and_not_heard(
    join: Join, caplog: pytest.LogCaptureFixture
) -> None:
    larger, model = Constant(1001), Constant()
    publish(join(0, larger), larger, 1)
    publish(join(2, model, codec="bf16"), model, 1)
    reasons = ["tensors has weights [1001] float32 there, weights [1000] float32 here", "codec = bf16 there, fp32 here"]
    assert nothing_until(join(1, Constant(), peers=(0, 2)), lambda: all(each in caplog.text for each in reasons))


@pytest.mark.parametrize("failure", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_disk_that_takes_nothing_costs_that_snapshot_only(
    failure: int, join: Join, world: Communicator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise OSError(failure, os.strerror(failure))

    model = Constant()
    writer, reader = join(0, model), join(1, Constant(), peers=(0,))
    with monkeypatch.context() as patch:
        patch.setattr(files, "save_state", fail)
        publish(writer, model, 1)
    if world.rank == 0:
        assert f"no snapshot at step 1 for its peers: [Errno {failure}]" in capsys.readouterr().err
    publish(writer, model, 2)
    assert news(reader) == {0: 2}


def test_temporary_files_of_a_killed_writer_are_removed(join: Join, folder: Path, world: Communicator) -> None:
    temporary = [folder / ".g0-0000000007.h5.123", folder / ".g1-0000000007.h5.123"]
    if world.rank == 0:
        folder.mkdir()
        for path in temporary:
            path.touch()
    world.Barrier()
    model = Constant()
    publish(join(0, model), model, 1)
    assert [path.exists() for path in temporary] == [False, True]


def test_a_changed_model_is_refused_and_nothing_is_done_after_free(join: Join) -> None:
    model = Constant()
    exchange = join(0, model)
    model.weights.data = torch.zeros(5)
    refused = pytest.raises(UserError, match=r"weights \[1000\] float32 against weights \[5\] float32")
    with refused if exchange._groups.is_leader else nullcontext():  # the leader encodes the whole payload
        exchange.publish(1)
    exchange.free()
    for use in (exchange.free, lambda: exchange.publish(1), lambda: list(exchange.collect())):
        with pytest.raises(RuntimeError, match="freed already; open a new one"):
            use()


def write_for_ever(folder: Path, number: int) -> None:
    while True:
        number += 1
        wire = torch.full((300_000,), number % 256, dtype=torch.uint8)
        save_state(folder / f"g0-{number:010d}.h5", KIND, {"number": number, "wire": wire})


@pytest.mark.launch
def test_a_writer_killed_at_any_moment_leaves_only_whole_files(tmp_path: Path) -> None:
    random, number = Random(0), 0
    for _ in range(60):
        kill_at_random(partial(write_for_ever, tmp_path, number), random, lambda: any(tmp_path.glob("g0-*.h5")))
        for path in tmp_path.glob("g0-*.h5"):
            state = load_state(path, KIND)
            assert (state["wire"] == state["number"] % 256).all()
            number = max(number, state["number"])
            path.unlink()
