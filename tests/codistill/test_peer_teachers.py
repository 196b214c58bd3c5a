"""Teachers predict as their peers did at the published step, and give no gradient."""

import time
from collections.abc import Callable

import pytest
import torch
from mpi4py import MPI
from torch import nn

from hpcdistill.codistill.peer_teachers import Teachers
from hpcdistill.config.schema import CodistillConfig
from hpcdistill.data.batches import Batch
from hpcdistill.distributed.groups import Groups
from hpcdistill.exchange.topology import Topology
from hpcdistill.exchange.weights import WeightPayload
from hpcdistill.exchange.window.exchange import WindowExchange
from hpcdistill.tasks.objective import Softmax

pytestmark = pytest.mark.skipif(MPI.COMM_WORLD.size < 2, reason="ranks: needs peers; run under mpirun")

INPUTS = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
TARGETS = torch.zeros(5, dtype=torch.int64)
Predictions = dict[int, torch.Tensor]


def model_of(group: int) -> nn.Module:
    torch.manual_seed(group)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    model(torch.randn(32, 4))  # moves the batch norm statistics
    return model


def predictions_until(
    done: Callable[[int, Predictions], bool], groups: Groups, topology: Topology, precision: str = "full"
) -> Predictions:
    """What each peer's teacher makes of `INPUTS`, after the first step at which all ranks are `done`."""
    config = CodistillConfig(burn_in=20, exchange_interval=10, teacher_precision=precision)
    student = model_of(groups.group)
    payload = WeightPayload(student)
    with WindowExchange(groups, payload, len(topology.peers(0))) as exchange:
        teachers = Teachers(config, student, exchange, payload, topology, groups, Softmax(3))
        step, predictions = 0, {}
        while not groups.comm.allreduce(done(step, predictions), op=MPI.LAND):  # bounded by the test's timeout
            step += 1
            teachers.advance(step)
            staleness = teachers.staleness(step)
            assert all((step - stale) % config.exchange_interval == 0 for stale in staleness.values())
            teachers.predict(Batch((INPUTS,), TARGETS))
            predictions = dict(zip(staleness, teachers.outputs(), strict=True))
            assert teachers.outputs() == []  # handed over
            assert not predictions or step >= config.burn_in
            time.sleep(1e-3)
    assert student.training
    assert all(parameter.requires_grad for parameter in student.parameters())
    return predictions


def test_teachers_are_the_peers_in_eval_mode_without_gradient(groups: Groups) -> None:
    topology = Topology("all", groups.group, groups.count)
    predictions = predictions_until(lambda _, known: len(known) == groups.count - 1, groups, topology)
    for peer in groups.peers:
        assert torch.equal(predictions[peer], model_of(peer).eval()(INPUTS))
        assert not predictions[peer].requires_grad


def test_changing_peers_take_each_others_place(groups: Groups) -> None:
    """Of all others, one teaches at a time, and it is always one of them as it was."""
    truth = {peer: model_of(peer).eval()(INPUTS) for peer in groups.peers}
    heard: set[int] = set()

    def all_have_taught(_: int, known: Predictions) -> bool:
        assert len(known) <= 1
        assert all(torch.equal(logits, truth[peer]) for peer, logits in known.items())
        heard.update(known)
        return heard == set(groups.peers)

    predictions_until(all_have_taught, groups, Topology("k-random", groups.group, groups.count))


def test_teachers_can_compute_in_bf16(groups: Groups) -> None:
    topology = Topology("ring", groups.group, groups.count)
    predictions = predictions_until(lambda _, known: bool(known), groups, topology, precision="bf16")
    (peer,) = topology.peers(0)
    exact = model_of(peer).eval()(INPUTS)
    error = (predictions[peer] - exact).abs().max()
    assert predictions[peer].dtype == torch.float32  # the student's
    assert 0 < error < 0.02 * exact.abs().max()  # a few roundings of 2⁻⁸, and not none
