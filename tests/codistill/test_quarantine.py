"""A peer that would do harm is not learned from, with the reason said, until it is well again."""

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from mpi4py import MPI
from torch import nn

from hpcdistill.codistill.peer_teachers import PATIENCE, WORSE_THAN_GUESSING, Teachers
from hpcdistill.config.schema import CodistillConfig
from hpcdistill.data.batches import Batch
from hpcdistill.distributed.groups import Groups
from hpcdistill.exchange import files
from hpcdistill.exchange.files import FilesExchange
from hpcdistill.exchange.topology import Topology
from hpcdistill.exchange.weights import WeightPayload
from hpcdistill.tasks.objective import Softmax

BATCH = Batch((torch.eye(3),), torch.arange(3))
CONFIG = CodistillConfig(burn_in=1, exchange_interval=1)


School = tuple["Student", "Peer", "Peer"]


class Peer:
    """A group that publishes a linear model, [3, 3], which is right by `skill` nats before the softmax."""

    def __init__(self, exchange: FilesExchange, model: nn.Linear) -> None:
        self._exchange = exchange
        self._model = model

    def publish(self, step: int, skill: float) -> None:
        with torch.no_grad():
            self._model.weight.copy_(skill * torch.eye(3))
        while not self._exchange.publish(step):  # bounded by the test's timeout, as all loops here
            time.sleep(1e-3)


class Student:
    """The group under test, which learns from groups 0 and 2."""

    def __init__(self, teachers: Teachers) -> None:
        self.teachers = teachers

    def hear(self, step: int, peer: int, of: int) -> int:
        """Make `step` again and again, until the snapshot of step `of` has come; how many taught then."""
        while self.teachers.staleness(step).get(peer) != step - of:
            self.teachers.advance(step)
            time.sleep(1e-3)
        return self.taught()

    def taught(self) -> int:
        self.teachers.predict(BATCH)
        return len(self.teachers.outputs())


@pytest.fixture
def school(tmp_path: Path, world: MPI.Intracomm, monkeypatch: pytest.MonkeyPatch) -> Iterator[School]:
    monkeypatch.setattr(files, "POLL_SECONDS", 0.01)
    folder = world.bcast(tmp_path)
    with ExitStack() as stack:

        def join(group: int) -> tuple[Groups, FilesExchange, nn.Linear]:
            groups, model = Groups.alone(world, group, 3, torch.device("cpu")), nn.Linear(3, 3, bias=False)
            return groups, stack.enter_context(FilesExchange(groups, WeightPayload(model), folder)), model

        (_, first, one), (groups, exchange, model), (_, third, other) = map(join, range(3))
        teachers = Teachers(CONFIG, model, exchange, WeightPayload(model), Topology("all", 1, 3), groups, Softmax(3))
        yield Student(teachers), Peer(first, one), Peer(third, other)


@pytest.mark.parametrize("skill", [math.nan, math.inf])
def test_what_is_not_finite_is_not_learned_from_until_it_is(
    skill: float, school: School, world: MPI.Intracomm, capsys: pytest.CaptureFixture[str]
) -> None:
    student, first, third = school
    first.publish(1, skill=1.0)
    third.publish(1, skill=1.0)
    student.hear(1, peer=2, of=1)
    assert student.hear(1, peer=0, of=1) == 2
    first.publish(2, skill)
    assert student.hear(2, peer=0, of=2) == 1  # the other one goes on teaching
    assert student.teachers.quarantine == {0: "its snapshot of step 2 is not finite"}
    first.publish(3, skill=1.0)
    assert student.hear(3, peer=0, of=3) == 2
    assert student.teachers.quarantine == {}
    if world.rank == 0:
        said = capsys.readouterr().err
        assert said.count("group 1: group 0 is not learned from, for now: its snapshot of step 2 is not finite") == 1
        assert said.count("group 1: group 0 teaches again, as it was at step 3") == 1


def test_who_is_not_heard_of_for_too_long_is_not_learned_from(school: School) -> None:
    student, first, _ = school
    first.publish(1, skill=1.0)
    student.hear(1, peer=0, of=1)
    student.teachers.advance(1 + PATIENCE)
    assert student.taught() == 1
    student.teachers.advance(2 + PATIENCE)
    assert student.taught() == 0
    assert student.teachers.quarantine == {0: f"not heard of for more than {PATIENCE} steps"}
    first.publish(7, skill=1.0)
    assert student.hear(500, peer=0, of=7) == 1  # having been restarted it is behind, and welcome


@pytest.mark.parametrize(("loss", "teaches"), [(0.9, True), (1.1, False)])
def test_who_is_much_worse_than_guessing_is_not_learned_from(loss: float, teaches: bool, school: School) -> None:
    """Just inside the margin, and just outside."""
    student, first, _ = school
    target = math.log(3) + loss * WORSE_THAN_GUESSING
    # The softmax of (skill, 0, 0) leaves 1 / (1 + 2 exp(-skill)) to the target, which is exp(-loss).
    first.publish(1, skill=-math.log((math.exp(target) - 1) / 2))
    assert student.hear(1, peer=0, of=1) == teaches
    assert bool(student.teachers.quarantine) != teaches
    if not teaches:
        assert "as it was at step 1 it is worse than guessing: 1.65 nats, not 1.1" in student.teachers.quarantine[0]
        assert student.taught() == 0  # nor on the next batch
        first.publish(2, skill=1.0)
        assert student.hear(2, peer=0, of=2) == 1
