"""A group's own earlier model as its teacher: its snapshots, and restarts between two of them."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from hpcdistill import Codistillation, Groups, codistillation_loss
from hpcdistill.codistill.fixed_teachers import FixedTeachers
from hpcdistill.distributed.communicator import Communicator
from hpcdistill.errors import UserError
from hpcdistill.training.average import MovingAverage

INTERVAL, BURN_IN = 4, 6


@pytest.fixture(scope="module", params=["none", "torch"])
def groups(request: pytest.FixtureRequest, world: Communicator) -> Iterator[Groups]:
    """Yield groups of at most two ranks, which average gradients by DistributedDataParallel; or a single process.

    The sum of more than two gradients depends on their place in DistributedDataParallel's buckets, which it rebuilds
    after the first step of each start.
    """
    yield Groups.from_world(max(1, world.size // 2), gradients="torch") if request.param == "torch" else Groups.single()
    if dist.is_initialized():
        dist.destroy_process_group()


def classifier() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))


@dataclass
class Training:
    """Training of one model on data that depend on the rank and the step, from a checkpoint if one is given."""

    groups: Groups
    averages: bool = False
    precision: str = "full"
    teachers: Any = "self"
    interval: int = INTERVAL

    def __post_init__(self) -> None:
        torch.manual_seed(1)
        self.model = classifier()
        self.average = MovingAverage(self.model, 0.8) if self.averages else None
        optimizer = torch.optim.Adam(self.model.parameters(), lr=0.05)
        self.forward, self.optimizer = self.groups.distribute(self.model, optimizer)
        published = self.average.module if self.average else None
        options: dict[str, Any] = {"teachers": self.teachers, "published": published, "interval": self.interval}
        self.peers = Codistillation(
            self.model, self.groups, burn_in=BURN_IN, teacher_precision=self.precision, **options
        )
        self.taught = 0
        self.steps = 0

    @property
    def parts(self) -> dict[str, Any]:
        known = {"model": self.model, "optimizer": self.optimizer, "peers": self.peers, "average": self.average}
        return {name: part for name, part in known.items() if part is not None}

    def run(self, until: int) -> "Training":
        """Train until this number of steps."""
        while self.steps < until:
            inputs, target = batch(self.steps, self.groups.rank)
            teachers = self.peers.predict(inputs)
            self.taught += len(teachers)
            codistillation_loss(self.forward(inputs), target, teachers, distill_weight=self.peers.weight).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            if self.average:
                self.average.update_parameters(self.model)
            self.peers.step()
            self.steps += 1
        return self

    def save(self) -> bytes:
        """Return the leader's checkpoint on every rank."""
        file = io.BytesIO()
        torch.save({name: part.state_dict() for name, part in self.parts.items()}, file)
        content: bytes = self.groups.comm.bcast(file.getvalue())
        return content

    def load(self, checkpoint: bytes) -> "Training":
        state = torch.load(io.BytesIO(checkpoint))
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        self.steps = state["peers"]["step"]
        return self


def batch(step: int, rank: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 * step + rank)
    return torch.randn(6, 4, generator=generator), torch.randint(3, (6,), generator=generator)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize(
    "options",
    [{}, {"averages": True}, {"precision": "bf16"}],
    ids=["student", "average", "bf16"],
)
def test_a_resumed_run_is_bit_identical(options: dict[str, Any], groups: Groups) -> None:
    """Stop before the first snapshot, in the burn-in after it, at a snapshot, and between two snapshots."""
    straight = Training(groups, **options).run(15)
    assert straight.taught == 15 - BURN_IN
    for stop in (3, 5, 8, 10):
        checkpoint = Training(groups, **options).run(stop).save()
        resumed = Training(groups, **options).load(checkpoint).run(15)
        assert torch.equal(weights(straight.model), weights(resumed.model)), stop
        assert resumed.peers.staleness == straight.peers.staleness == {groups.group: 3}
    alone = Training(groups, **options, teachers=FixedTeachers()).run(15)
    assert not torch.equal(weights(straight.model), weights(alone.model))


@pytest.mark.parametrize("averages", [False, True])
def test_the_teacher_is_what_would_be_published_at_the_last_interval(averages: bool, groups: Groups) -> None:
    training, inputs = Training(groups, averages), batch(99, 0)[0]
    assert training.run(BURN_IN - 1).peers.predict(inputs) == []
    assert training.peers.staleness == {}
    training.run(2 * INTERVAL)
    source = training.average.module if training.average else training.model
    leader = classifier().eval()
    leader.load_state_dict(groups.comm.bcast(source.state_dict()))  # whose statistics are in checkpoints
    for steps in range(INTERVAL):
        (teacher,) = training.run(2 * INTERVAL + steps).peers.predict(inputs)
        assert torch.equal(teacher, leader(inputs))
        assert not teacher.requires_grad
        assert training.peers.staleness == {groups.group: steps}
        assert training.peers.quarantine == {}
    (teacher,) = training.run(3 * INTERVAL).peers.predict(inputs)
    assert not torch.equal(teacher, leader(inputs))


def test_without_a_snapshot_the_model_teaches_from_the_next_one_on(capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = Training(Groups.single(), teachers=FixedTeachers()).run(9).save()
    capsys.readouterr()
    training = Training(Groups.single()).load(checkpoint)
    assert "the state of step 9 has no snapshot of the group's own model, which teaches again from step 12 on" in (
        capsys.readouterr().err
    )
    assert training.run(12).taught == 0
    assert training.run(14).taught == 2


def test_other_teachers_continue_without_the_snapshot() -> None:
    checkpoint = Training(Groups.single()).run(9).save()
    other = Training(Groups.single(), teachers=FixedTeachers()).load(checkpoint)
    assert other.run(10).taught == 0
    assert set(other.peers.state_dict()) == {"step", "tensors"}


def test_a_start_before_the_first_snapshot_is_no_warning(capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = Training(Groups.single()).run(3).save()
    Training(Groups.single()).load(checkpoint)
    assert not capsys.readouterr().err


def test_without_weight_the_model_does_not_teach() -> None:
    peers = Codistillation(nn.Linear(4, 3), Groups.single(), teachers="self", weight=0, burn_in=0, interval=1)
    peers.step()
    assert peers.predict(torch.randn(2, 4)) == []


def test_bad_inputs_are_named() -> None:
    peers = Codistillation(nn.Linear(4, 3), Groups.single(), teachers="self", burn_in=0, interval=1)
    peers.step()
    with pytest.raises(UserError, match=r"the model of group 0 cannot predict for these inputs"):
        peers.predict(torch.randn(2, 7))
