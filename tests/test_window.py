"""The one-sided exchange between real ranks: whole snapshots, of the step they claim, and nobody waits."""

import time
from types import SimpleNamespace

import pytest
import torch
from mpi4py import MPI
from torch import nn

from hpcdistill.errors import UserError
from hpcdistill.exchange import window
from hpcdistill.exchange.topology import peers_of
from hpcdistill.exchange.window import WindowExchange
from hpcdistill.groups import Groups
from hpcdistill.snapshot import Layout

pytestmark = pytest.mark.skipif(MPI.COMM_WORLD.size < 2, reason="needs peers: run under mpirun")


class Constant(nn.Module):
    """A model whose every element, buffers included, says which group and step it is of."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(elements))
        self.register_buffer("counts", torch.zeros(elements // 3, dtype=torch.int64))

    @torch.no_grad()
    def become(self, number: int) -> None:
        self.weights.fill_(number)
        self.counts.fill_(number)


def number(group: int, step: int) -> int:
    return 100_000 * (group + 1) + step


@pytest.mark.parametrize("elements", [1000, 1_000_000])
def test_snapshots_are_whole_and_of_one_step_while_writers_never_pause(groups: Groups, elements: int) -> None:
    model, last = Constant(elements), 300
    layout = Layout.of(model)
    newest = dict.fromkeys(groups.peers, 0)

    def take_up(exchange: WindowExchange) -> None:
        for peer, step, flat in exchange.collect():
            for view in layout.views(flat[: layout.nbytes], 0, layout.nbytes):
                assert (view == number(peer, step)).all(), f"torn or mixed: {view.unique()} at step {step}"
            assert step > newest[peer]
            newest[peer] = step

    with WindowExchange(groups, model, layout, groups.peers) as exchange:
        for step in range(1, last):
            model.become(number(groups.group, step))
            exchange.publish(step)
            take_up(exchange)
        model.become(number(groups.group, last))
        while not exchange.publish(last):
            time.sleep(1e-3)
        while any(step < last for step in newest.values()):  # bounded by the test's timeout
            take_up(exchange)
            time.sleep(1e-3)


def test_only_the_peers_of_the_topology_are_heard_of(groups: Groups) -> None:
    model = Constant(1000)
    model.become(number(groups.group, 1))
    (following,) = peers_of("ring", groups.group, groups.count)
    with WindowExchange(groups, model, Layout.of(model), [following]) as exchange:
        exchange.publish(1)
        heard: list[tuple[int, int]] = []
        while not heard:  # bounded by the test's timeout
            heard = [(peer, step) for peer, step, _ in exchange.collect()]
            time.sleep(1e-3)
        assert heard == [(following, 1)]


def test_nobody_waits_for_a_group_that_stands_still(groups: Groups) -> None:
    model, still = Constant(1000), groups.count - 1
    with WindowExchange(groups, model, Layout.of(model), groups.peers) as exchange:
        if groups.group != still:
            for step in range(1, 51):
                exchange.publish(step)
                list(exchange.collect())
            groups.world.send(None, dest=still * groups.size)
        elif groups.is_leader:
            for _ in range(groups.world.size - groups.size):  # until all others have made all their steps
                groups.world.recv()


def test_groups_with_different_models_are_refused_on_every_rank(groups: Groups) -> None:
    model = nn.Linear(3, 4 if groups.group == 0 else 5)
    with pytest.raises(UserError, match=r"group 0 against group 1: weight \[4, 3\] float32 against weight \[5, 3\]"):
        WindowExchange(groups, model, Layout.of(model), groups.peers)


def test_windows_that_a_node_cannot_hold_are_refused_on_every_rank(
    groups: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though only the last rank's node is short of memory."""
    free = 2**20 if groups.world.rank == groups.world.size - 1 else 2**40
    monkeypatch.setattr(window.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    model = Constant(1_000_000)
    with pytest.raises(
        UserError, match=rf"windows of the {groups.world.size} ranks .* MiB of /dev/shm, which has 1 MiB"
    ):
        WindowExchange(groups, model, Layout.of(model), groups.peers)


def test_after_an_exception_the_block_is_left_without_waiting_for_others(groups: Groups) -> None:
    model = Constant(10)
    with pytest.raises(RuntimeError, match="mine"), WindowExchange(groups, model, Layout.of(model), groups.peers):
        raise RuntimeError("mine")
