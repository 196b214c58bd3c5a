"""Teachers predict as their peers did at the published step, and give no gradient."""

from collections.abc import Iterator

import torch
from torch import nn

from hpcdistill.config import CodistillConfig
from hpcdistill.exchange import Exchange
from hpcdistill.snapshot import Layout
from hpcdistill.teachers import Teachers


class Inbox(Exchange):
    """An exchange inside one process, for what teachers make of it; the real one has tests of its own."""

    def __init__(self) -> None:
        self.published: list[int] = []
        self.arrived: list[tuple[int, int, nn.Module]] = []

    def publish(self, step: int) -> bool:
        self.published.append(step)
        return True

    def collect(self) -> Iterator[tuple[int, int, torch.Tensor]]:
        while self.arrived:
            peer, step, model = self.arrived.pop(0)
            layout = Layout.of(model)
            flat = torch.zeros(layout.nbytes, dtype=torch.uint8)
            whole = (0, layout.nbytes)
            torch._foreach_copy_(layout.views(flat, *whole), layout.slices(model, *whole))
            yield peer, step, flat

    def __exit__(self, *_: object) -> None:
        pass


def make_model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))


def test_teachers_are_the_peers_in_eval_mode_without_gradient() -> None:
    student, peer, inbox = make_model(0), make_model(1), Inbox()
    peer(torch.randn(32, 4))  # moves the batch norm statistics
    config = CodistillConfig(burn_in=20, exchange_interval=10)
    teachers = Teachers(config, student, Layout.of(student), inbox)
    inputs = torch.randn(5, 4)
    assert teachers.logits(inputs) == []

    inbox.arrived.append((3, 9, peer))
    teachers.advance(19)
    assert teachers.logits(inputs) == []  # still burning in
    teachers.advance(20)
    (logits,) = teachers.logits(inputs)
    assert torch.equal(logits, peer.eval()(inputs))
    assert not logits.requires_grad
    assert teachers.staleness(25) == {3: 16}
    assert student.training
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_weights_are_published_every_interval() -> None:
    student, inbox = make_model(0), Inbox()
    teachers = Teachers(CodistillConfig(burn_in=0, exchange_interval=3), student, Layout.of(student), inbox)
    for step in range(1, 10):
        teachers.advance(step)
    assert inbox.published == [3, 6, 9]
