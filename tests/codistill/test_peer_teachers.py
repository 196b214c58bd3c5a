"""Peer teachers predict as the peers did at the published step, and give no gradient."""

import time
from collections.abc import Callable

import pytest
import torch
from mpi4py import MPI
from torch import nn

from hpcdistill.codistill.session import Codistillation
from hpcdistill.distributed.groups import Groups
from hpcdistill.exchange.topology import Topology

pytestmark = pytest.mark.skipif(MPI.COMM_WORLD.size < 2, reason="ranks: needs peers; run under mpirun")

INPUTS = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
Predictions = dict[int, torch.Tensor]


def model_of(group: int) -> nn.Module:
    torch.manual_seed(group)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    model(torch.randn(32, 4))  # changes the running statistics
    return model


def predictions_until(
    done: Callable[[Predictions], bool], groups: Groups, topology: str, precision: str = "full"
) -> Predictions:
    """Return each teacher's prediction for `INPUTS` after the first step at which all ranks are `done`."""
    student = model_of(groups.group)
    with Codistillation(
        student, groups, interval=10, burn_in=20, topology=topology, teacher_precision=precision
    ) as peers:
        step, predictions = 0, {}
        while not groups.comm.allreduce(done(predictions), op=MPI.LAND):  # bounded by the test's timeout
            step += 1
            peers.step()
            assert all((step - stale) % 10 == 0 for stale in peers.staleness.values())
            predictions = dict(zip(peers.staleness, peers.predict(INPUTS), strict=True))
            assert not predictions or step >= 20
            time.sleep(1e-3)
    assert student.training
    assert all(parameter.requires_grad for parameter in student.parameters())
    return predictions


def test_teachers_are_the_peers_in_eval_mode_without_gradient(groups: Groups) -> None:
    predictions = predictions_until(lambda known: len(known) == groups.count - 1, groups, "all")
    for peer in groups.peers:
        assert torch.equal(predictions[peer], model_of(peer).eval()(INPUTS))
        assert not predictions[peer].requires_grad


def test_changing_peers_take_each_others_place(groups: Groups) -> None:
    """Check that one group at a time teaches, that its predictions are those of its model, and that all take turns."""
    truth = {peer: model_of(peer).eval()(INPUTS) for peer in groups.peers}
    heard: set[int] = set()

    def all_have_taught(known: Predictions) -> bool:
        assert len(known) <= 1
        assert all(torch.equal(logits, truth[peer]) for peer, logits in known.items())
        heard.update(known)
        return heard == set(groups.peers)

    predictions_until(all_have_taught, groups, "k-random")


def test_teachers_can_compute_in_bf16(groups: Groups) -> None:
    predictions = predictions_until(bool, groups, "ring", precision="bf16")
    (peer,) = Topology("ring", groups.group, groups.count).peers(0)
    exact = model_of(peer).eval()(INPUTS)
    error = (predictions[peer] - exact).abs().max()
    assert predictions[peer].dtype == torch.float32  # the student's
    assert 0 < error < 0.02 * exact.abs().max()  # rounding errors of bfloat16, and not zero
