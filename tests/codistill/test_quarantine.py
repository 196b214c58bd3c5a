"""A peer whose snapshots would harm the student does not teach, with a reason, until a better one comes."""

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from torch import nn

from hpcdistill.codistill.peer_teachers import PeerTeachers
from hpcdistill.codistill.quarantine import MARGIN, Quarantine
from hpcdistill.distributed.communicator import Communicator
from hpcdistill.distributed.groups import Groups
from hpcdistill.exchange import files
from hpcdistill.exchange.files import FilesExchange
from hpcdistill.exchange.topology import Topology
from hpcdistill.exchange.weights import WeightPayload
from hpcdistill.tasks.objective import Softmax

PATIENCE = 20

School = tuple["Student", "Peer", "Peer"]


class Peer:
    """A group that publishes a linear model, [3, 3], whose logit of the right class is `skill`, of others 0."""

    def __init__(self, exchange: FilesExchange, model: nn.Linear) -> None:
        self._exchange = exchange
        self._model = model

    def publish(self, step: int, skill: float) -> None:
        with torch.no_grad():
            self._model.weight.copy_(skill * torch.eye(3))
        while not self._exchange.publish(step):  # bounded by the test's timeout, as all loops here
            time.sleep(1e-3)


class Student:
    """The group under test, with groups 0 and 2 as teachers."""

    def __init__(self, teachers: PeerTeachers) -> None:
        self.teachers = teachers

    def hear(self, step: int, peer: int, of: int) -> int:
        """Repeat `step` until the snapshot of step `of` has arrived; return how many peers teach then."""
        while self.teachers.staleness(step).get(peer) != step - of:
            self.teachers.step(step)
            time.sleep(1e-3)
        return self.taught()

    def taught(self) -> int:
        return len(self.teachers.predict(torch.eye(3), target=torch.arange(3)))


@pytest.fixture
def school(tmp_path: Path, world: Communicator, monkeypatch: pytest.MonkeyPatch) -> Iterator[School]:
    monkeypatch.setattr(files, "POLL_SECONDS", 0.01)
    folder = world.bcast(tmp_path)
    with ExitStack() as stack:

        def join(group: int) -> tuple[FilesExchange, nn.Linear]:
            model = nn.Linear(3, 3, bias=False)
            groups = Groups.alone(world, group, 3, torch.device("cpu"))
            return stack.enter_context(FilesExchange(groups, WeightPayload(model), folder)), model

        first, (exchange, model), third = map(join, range(3))
        quarantine = Quarantine(Groups.alone(world, 1, 3, torch.device("cpu")), PATIENCE, Softmax(3).excess_loss)
        network = Topology("all", 1, 3)
        teachers = PeerTeachers(model, exchange, WeightPayload(model), network, quarantine, interval=1, burn_in=1)
        yield Student(teachers), Peer(*first), Peer(*third)


@pytest.mark.parametrize("skill", [math.nan, math.inf])
def test_a_snapshot_that_is_not_finite_does_not_teach_until_the_next_one(
    skill: float, school: School, world: Communicator, capsys: pytest.CaptureFixture[str]
) -> None:
    student, first, third = school
    first.publish(1, skill=1.0)
    third.publish(1, skill=1.0)
    student.hear(1, peer=2, of=1)
    assert student.hear(1, peer=0, of=1) == 2
    first.publish(2, skill)
    assert student.hear(2, peer=0, of=2) == 1  # the other one still teaches
    assert student.teachers.quarantine == {0: "its snapshot of step 2 is not finite"}
    first.publish(3, skill=1.0)
    assert student.hear(3, peer=0, of=3) == 2
    assert student.teachers.quarantine == {}
    if world.rank == 0:
        said = capsys.readouterr().err
        reason = "its snapshot of step 2 is not finite"
        assert said.count(f"group 1: group 0 is in quarantine and does not teach: {reason}") == 1
        assert said.count("group 1: group 0 has left quarantine with its snapshot of step 3") == 1


def test_a_snapshot_without_a_successor_expires(school: School) -> None:
    student, first, _ = school
    first.publish(1, skill=1.0)
    student.hear(1, peer=0, of=1)
    student.teachers.step(1 + PATIENCE)
    assert student.taught() == 1
    student.teachers.step(2 + PATIENCE)
    assert student.taught() == 0
    assert student.teachers.quarantine == {0: f"no new snapshot of it for more than {PATIENCE} steps"}
    first.publish(7, skill=1.0)
    assert student.hear(500, peer=0, of=7) == 1  # it is behind after a restart, and may teach


@pytest.mark.parametrize(("loss", "teaches"), [(0.9, True), (1.1, False)])
def test_a_snapshot_that_is_worse_than_chance_does_not_teach(loss: float, teaches: bool, school: School) -> None:
    """Test a loss just inside the margin, and one just outside."""
    student, first, _ = school
    target = math.log(3) + loss * MARGIN
    # The softmax of (skill, 0, 0) leaves 1 / (1 + 2 exp(-skill)) to the target, which is exp(-loss).
    first.publish(1, skill=-math.log((math.exp(target) - 1) / 2))
    assert student.hear(1, peer=0, of=1) == teaches
    assert bool(student.teachers.quarantine) != teaches
    if not teaches:
        assert "its snapshot of step 1 is 0.55 nats worse than a constant prediction" in student.teachers.quarantine[0]
        assert student.taught() == 0  # nor on the next batch
        first.publish(2, skill=1.0)
        assert student.hear(2, peer=0, of=2) == 1
