"""Teachers predict as their peers did at the published step, and give no gradient."""

import time

import pytest
import torch
from mpi4py import MPI
from torch import nn

from hpcdistill.config import CodistillConfig
from hpcdistill.exchange.window import WindowExchange
from hpcdistill.groups import Groups
from hpcdistill.snapshot import Layout
from hpcdistill.teachers import Teachers

pytestmark = pytest.mark.skipif(MPI.COMM_WORLD.size < 2, reason="needs peers: run under mpirun")


def model_of(group: int) -> nn.Module:
    torch.manual_seed(group)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    model(torch.randn(32, 4))  # moves the batch norm statistics
    return model


def test_teachers_are_the_peers_in_eval_mode_without_gradient(groups: Groups) -> None:
    student = model_of(groups.group)
    layout = Layout.of(student)
    config = CodistillConfig(burn_in=20, exchange_interval=10)
    inputs = torch.randn(5, 4)
    with WindowExchange(groups, student, layout, groups.peers) as exchange:
        teachers = Teachers(config, student, layout, exchange)
        for step in range(1, 20):
            teachers.advance(step)
            assert teachers.logits(inputs) == []  # burning in
        step = 20
        while len(teachers.staleness(step)) < groups.count - 1:  # bounded by the test's timeout
            step += 1
            teachers.advance(step)
            time.sleep(1e-3)
        assert all((step - stale) % config.exchange_interval == 0 for stale in teachers.staleness(step).values())
        predictions = dict(zip(teachers.staleness(step), teachers.logits(inputs), strict=True))
    for peer in groups.peers:
        assert torch.equal(predictions[peer], model_of(peer).eval()(inputs))
        assert not predictions[peer].requires_grad
    assert student.training
    assert all(parameter.requires_grad for parameter in student.parameters())
