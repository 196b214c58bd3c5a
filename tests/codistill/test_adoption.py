"""Adoption of snapshots, with an exchange that delivers at once: what it costs on a GPU."""

from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from hpcdistill.codistill.peer_teachers import PeerTeachers
from hpcdistill.codistill.quarantine import Quarantine
from hpcdistill.distributed.groups import Groups
from hpcdistill.exchange.base import Exchange, Snapshot
from hpcdistill.exchange.codec import CODECS
from hpcdistill.exchange.topology import Topology
from hpcdistill.exchange.weights import WeightPayload
from synchronizations import recorded_synchronizations

pytestmark = pytest.mark.alone


class Recurrent(nn.Module):
    """Model with an LSTM, and a buffer of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 4), nn.Linear(4, 2)
        self.register_buffer("count", torch.tensor(3))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.lstm(inputs)[0])


class Delivery:
    """Exchange that yields the models of groups 1 and 2 in each call, and then overwrites its memory, as others may.

    Attributes:
        done: number of synchronizations when the memory was overwritten, for each snapshot.
        calls: names of the methods called.
    """

    def __init__(self, payloads: dict[int, WeightPayload]) -> None:
        self._payloads = payloads
        self._memory = torch.zeros(payloads[1].nbytes(0, 1), dtype=torch.uint8)
        self.found: list[str] = []
        self.done: list[int] = []
        self.calls: list[str] = []

    def publish(self, step: int) -> bool:
        self.calls.append("publish")
        return True

    def set_peers(self, peers: list[int]) -> None:
        self.calls.append("set_peers")
        assert peers == [1, 2]

    def collect(self) -> Iterator[Snapshot]:
        self.calls.append("collect")
        for peer, payload in self._payloads.items():
            payload.encode(0, 1, self._memory)
            yield Snapshot(peer, 5, [self._memory])
            self.done.append(len(self.found))
            self._memory.fill_(255)


@pytest.fixture
def flattened(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    modules: list[nn.Module] = []
    monkeypatch.setattr(nn.RNNBase, "flatten_parameters", lambda layer: modules.append(layer))
    return modules


def teachers_of(student: nn.Module, exchange: Delivery, burn_in: int) -> PeerTeachers:
    """Return the teachers of group 0 of three groups, which publish in each step."""
    return PeerTeachers(
        student,
        cast(Exchange, exchange),
        WeightPayload(student),
        Topology("all", 0, 3),
        Quarantine(Groups.single(), 100),
        interval=1,
        burn_in=burn_in,
    )


def test_a_snapshot_makes_the_host_wait_once_before_its_memory_is_reused(flattened: list[nn.Module]) -> None:
    student, *models = Recurrent(), Recurrent(), Recurrent()
    exchange = Delivery({peer: WeightPayload(model) for peer, model in enumerate(models, 1)})
    teachers = teachers_of(student, exchange, burn_in=1)
    flattened.clear()
    for step in (1, 2):
        with recorded_synchronizations() as found:
            exchange.found = found
            teachers.step(step)
        assert found == ["local_scalar_dense"] * 2
        assert exchange.done == [1, 2]
        exchange.done.clear()
    assert list(teachers.models) == [1, 2]
    inputs = torch.randn(5, 3)
    with recorded_synchronizations() as found:
        predictions = teachers.predict(inputs)
    assert found == []
    with torch.no_grad():
        for model, outputs in zip(models, predictions, strict=True):
            assert torch.equal(outputs, model(inputs))
    replicas = [cast(Any, replica).lstm for replica in teachers._replicas.values()]
    assert flattened == replicas  # each replica once, when it is made


def test_during_the_burn_in_snapshots_are_looked_for_in_few_steps() -> None:
    exchange = Delivery({peer: WeightPayload(Recurrent()) for peer in (1, 2)})
    teachers = teachers_of(Recurrent(), exchange, burn_in=53)
    looked = []
    for step in (*range(1, 30), 52, 53, 54):
        teachers.step(step)
        if exchange.done:
            looked.append(step)
            exchange.done.clear()
        assert list(teachers.models) == ([1, 2] if looked else [])
    assert looked == [25, 52, 53, 54]


def test_snapshots_are_adopted_in_the_burn_in_before_the_peers_change() -> None:
    """Let the ranks agree in the first call of `collect` and adopt in the second; a former peer's are dropped."""
    exchange = Delivery({peer: WeightPayload(Recurrent()) for peer in (1, 2)})
    teachers = teachers_of(Recurrent(), exchange, burn_in=100)
    teachers.step(24)
    exchange.calls.clear()
    teachers.step(25)
    assert exchange.calls == ["collect", "collect", "publish", "set_peers"]


@pytest.mark.parametrize("codec", CODECS)
def test_publishing_and_loading_do_not_make_the_host_wait(codec: str) -> None:
    model, replica = Recurrent(), Recurrent()
    payload = WeightPayload(model, codec)
    wires = [torch.empty(payload.nbytes(rank, 2), dtype=torch.uint8) for rank in range(2)]
    with recorded_synchronizations() as found:
        for rank, wire in enumerate(wires):
            payload.encode(rank, 2, wire)
        payload.load(wires, replica)
    assert found == []
    torch.testing.assert_close(replica.head.weight, model.head.weight, rtol=0.02, atol=0.01)
