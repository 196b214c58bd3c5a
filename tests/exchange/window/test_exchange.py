"""One-sided exchange between ranks: snapshots are whole, of the step they claim, and no group waits."""

import logging
import random
import time
import weakref
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mpi4py import MPI
from torch import nn
from typing_extensions import override

from constant_model import Constant
from hpcdistill.distributed.groups import Groups
from hpcdistill.errors import UserError
from hpcdistill.exchange.base import Exchange
from hpcdistill.exchange.layout import Layout
from hpcdistill.exchange.topology import Topology
from hpcdistill.exchange.weights import WeightPayload
from hpcdistill.exchange.window import allocation
from hpcdistill.exchange.window import exchange as window
from hpcdistill.exchange.window.exchange import WindowExchange

pytestmark = pytest.mark.skipif(MPI.COMM_WORLD.size < 2, reason="ranks: needs peers; run under mpirun")


def number(group: int, step: int) -> int:
    return 100_000 * (group + 1) + step


def newest_of(exchange: Exchange, replica: Constant, codec: str = "fp32") -> dict[int, int]:
    """Return the step of each snapshot collected, by peer, after checking that all of it is of that step."""
    steps = {}
    for snapshot in exchange.collect():
        WeightPayload(replica, codec).load(snapshot.shards, replica)
        count = number(snapshot.peer, snapshot.step)
        weight = float(torch.tensor(count, dtype=torch.bfloat16 if codec == "bf16" else torch.float32))
        found = [*replica.weights.aminmax(), *replica.counts.aminmax()]
        assert found == [weight, weight, count, count], f"torn or mixed at step {snapshot.step}"
        steps[snapshot.peer] = snapshot.step
    return steps


def exchange_until_all_is_known(groups: Groups, elements: int, codec: str = "fp32") -> None:
    """Publish after each step, as fast as possible, until the peers' last snapshots have arrived."""
    model, replica = (Constant(elements).to(groups.device) for _ in range(2))
    last = 300
    newest = dict.fromkeys(groups.peers, 0)
    with WindowExchange(groups, WeightPayload(model, codec), len(groups.peers)) as exchange:
        exchange.set_peers(groups.peers)
        for step in range(1, last + 1):
            model.become(number(groups.group, step))
            while not exchange.publish(step) and step == last:
                time.sleep(1e-3)
            heard = newest_of(exchange, replica, codec)
            assert all(step > newest[peer] for peer, step in heard.items())
            newest |= heard
        while any(step < last for step in newest.values()):  # bounded by the test's timeout
            newest |= newest_of(exchange, replica, codec)
            time.sleep(1e-3)


@pytest.mark.parametrize("elements", [1000, 1_000_000])
def test_snapshots_are_whole_and_of_one_step_while_writers_never_pause(groups: Groups, elements: int) -> None:
    exchange_until_all_is_known(groups, elements)


@pytest.mark.parametrize("elements", [10, 100_000])  # 10: some ranks of the large group have an empty shard
def test_groups_of_unequal_size_exchange_whole_snapshots(unequal_groups: Groups, elements: int) -> None:
    exchange_until_all_is_known(unequal_groups, elements)


def test_codecs_travel_through_windows(groups: Groups) -> None:
    exchange_until_all_is_known(groups, 1000, codec="bf16")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="GPU: none here")
def test_snapshots_leave_a_gpu_whole_while_it_goes_on_training(groups: Groups) -> None:
    """Change the model as soon as `publish` returns, while the copy to the host may be under way."""
    exchange_until_all_is_known(replace(groups, device=torch.device("cuda")), 1_000_000)


class WatchedWindow(MPI.Win):
    """Window that checks that buffers live until their operation ends: between nodes, after the call that begins it."""

    def __init__(self, _: MPI.Win) -> None:
        self.kept: list[bool] = []
        self.reads: list[MPI.Request] = []

    @override
    def Fetch_and_op(self, origin: Any, result: Any, *args: Any) -> None:
        self.lent = [weakref.ref(origin), weakref.ref(result)]
        super().Fetch_and_op(origin, result, *args)

    @override
    def Flush(self, rank: int) -> None:
        self.kept.append(all(memory() is not None for memory in self.lent))
        super().Flush(rank)

    @override
    def Rget(self, *args: Any) -> MPI.Request:
        self.reads.append(super().Rget(*args))
        return self.reads[-1]

    @override
    def Rget_accumulate(self, *args: Any, **options: Any) -> MPI.Request:
        self.reads.append(super().Rget_accumulate(*args, **options))
        return self.reads[-1]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[WatchedWindow]:
    """Return a list that collects the windows allocated from now on."""
    windows = []

    def allocate(*args: Any) -> WatchedWindow:
        windows.append(WatchedWindow(allocation.allocate_window(*args)))
        return windows[-1]

    monkeypatch.setattr(window, "allocate_window", allocate)
    return windows


def test_buffers_live_until_mpi_has_finished_with_them(groups: Groups, watched: list[WatchedWindow]) -> None:
    """Check it, because MPI would otherwise write to freed memory that is in use again."""
    for _ in range(20):
        with WindowExchange(groups, WeightPayload(Constant(1_000_000)), len(groups.peers)) as exchange:
            exchange.set_peers(groups.peers)
            exchange.publish(1)
            time.sleep(6e-3 * random.random())  # so that some reads are under way when the exchange is freed
    kept = [kept for each in watched for kept in each.kept]
    reads = [read for each in watched for read in each.reads]
    assert kept
    assert all(kept)
    assert reads
    assert all(read == MPI.REQUEST_NULL for read in reads)  # complete


def test_only_the_peers_that_were_set_are_read(groups: Groups) -> None:
    """Change peers at full speed: no snapshot may come from a group that is no longer a peer."""
    model, replica = Constant(1000), Constant(1000)
    topology = Topology("k-random", groups.group, groups.count, degree=1)
    heard: set[int] = set()
    with WindowExchange(groups, WeightPayload(model), degree=1) as exchange:
        interval = 0
        while heard != set(groups.peers):  # bounded by the test's timeout
            interval += 1
            model.become(number(groups.group, interval))
            exchange.publish(interval)
            peers = topology.peers(interval)
            exchange.set_peers(peers)
            for _ in range(5):
                steps = newest_of(exchange, replica)
                assert set(steps) <= set(peers)
                heard |= set(steps)
                time.sleep(1e-3)


def test_bytes_are_counted_and_logged_once(groups: Groups, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "hpcdistill")
    model, replica = Constant(1000), Constant(1000)
    with WindowExchange(groups, WeightPayload(model), len(groups.peers)) as exchange:
        exchange.set_peers(groups.peers)
        model.become(number(groups.group, 1))
        exchange.publish(1)
        adopted: dict[int, int] = {}
        while len(adopted) < len(groups.peers):  # bounded by the test's timeout
            adopted |= newest_of(exchange, replica)
            time.sleep(1e-3)
        total = groups.sum(exchange.traffic)
    snapshot = Layout.of(model).nbytes
    assert snapshot < total.published < snapshot + 1000
    assert dict(total.fetched) == dict.fromkeys(groups.peers, total.published)
    assert not total.discarded
    name = f"group {groups.group}, rank {groups.rank}"
    nbytes = exchange.traffic.published
    expected = [f"{name}: published step 1, {nbytes} bytes"]
    expected += [f"{name}: fetched step 1 of group {peer}, {nbytes} bytes" for peer in groups.peers]
    assert sorted(record.getMessage() for record in caplog.records) == sorted(expected)


def test_no_group_waits_for_one_that_stands_still(groups: Groups) -> None:
    model, still = Constant(1000), groups.count - 1
    with WindowExchange(groups, WeightPayload(model), len(groups.peers)) as exchange:
        exchange.set_peers(groups.peers)
        if groups.group != still:
            for step in range(1, 51):
                exchange.publish(step)
                list(exchange.collect())
            groups.world.send(None, dest=still * groups.size)
        elif groups.is_leader:
            for _ in range(groups.world.size - groups.size):  # until the other groups have made all their steps
                groups.world.recv()


@pytest.mark.parametrize(
    ("size", "codec", "difference"),
    [
        (5, "fp32", r"tensors has weight \[5, 3\] float32 there, weight \[4, 3\] float32 here"),
        (4, "bf16", "codec = bf16 there, fp32 here"),
    ],
)
def test_different_payloads_are_refused_on_every_rank(size: int, codec: str, difference: str, groups: Groups) -> None:
    payload = WeightPayload(nn.Linear(3, 4)) if groups.group == 0 else WeightPayload(nn.Linear(3, size), codec)
    with pytest.raises(UserError, match=rf"{difference} \(there is group 1, here group 0\); all groups must build"):
        WindowExchange(groups, payload, len(groups.peers))


def test_windows_that_a_node_cannot_hold_are_refused_on_every_rank(
    groups: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refuse on every rank, when only the last rank's node is short of memory."""
    free = 2**20 if groups.world.rank == groups.world.size - 1 else 2**40
    monkeypatch.setattr(allocation.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    model = Constant(1_000_000)
    with pytest.raises(UserError, match=r"windows of the \d+ ranks .* MiB of /dev/shm, which has 1 MiB"):
        WindowExchange(groups, WeightPayload(model), len(groups.peers))


def test_an_exception_leaves_the_block_without_waiting_for_others(groups: Groups) -> None:
    model = Constant(10)
    with pytest.raises(RuntimeError, match="mine"), WindowExchange(groups, WeightPayload(model), len(groups.peers)):
        raise RuntimeError("mine")


def test_a_tensor_that_has_changed_its_shape_is_refused_by_name(groups: Groups) -> None:
    model = Constant(10)
    exchange = WindowExchange(groups, WeightPayload(model), len(groups.peers))
    model.weights.data = torch.zeros(11)
    with pytest.raises(UserError, match=r"weights \[10\] float32 against weights \[11\] float32; .* keep their shapes"):
        exchange.publish(1)
    exchange.free()


def test_new_memory_of_the_same_shape_is_published(groups: Groups) -> None:
    model, replica = Constant(10), Constant(10)
    with WindowExchange(groups, WeightPayload(model), len(groups.peers)) as exchange:
        exchange.set_peers(groups.peers)
        model.become(number(groups.group, 1))
        model.weights.data = model.weights.data.clone()
        model.become(number(groups.group, 2))
        exchange.publish(2)
        while not newest_of(exchange, replica):  # bounded by the test's timeout
            time.sleep(1e-3)


def test_calls_after_free_are_refused(groups: Groups) -> None:
    exchange = WindowExchange(groups, WeightPayload(Constant(10)), len(groups.peers))
    exchange.free()
    for use in (exchange.free, lambda: exchange.publish(1), lambda: list(exchange.collect())):
        with pytest.raises(RuntimeError, match="freed already; open a new one"):
            use()


def test_another_number_of_peers_is_refused(groups: Groups) -> None:
    exchange = WindowExchange(groups, WeightPayload(Constant(10)), degree=1)
    with pytest.raises(ValueError, match=r"peers = \[\], but the exchange was opened for 1 at a time"):
        exchange.set_peers([])
    exchange.free()
