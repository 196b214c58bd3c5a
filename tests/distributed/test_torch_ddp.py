"""Gradients that torch's DistributedDataParallel averages, on any number of ranks, in one group or two."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from mpi4py import MPI
from torch import Tensor, nn

from hpcdistill.distributed.groups import Groups
from hpcdistill.errors import UserError
from linear_oracle import assert_matches_reference, random_linear_case

WORLD = MPI.COMM_WORLD


@pytest.fixture(scope="module", params=[1, 2])
def group(request: pytest.FixtureRequest) -> Iterator[Groups]:
    """Yield a group that is the whole world, or half of it."""
    if WORLD.size % request.param:
        pytest.skip(f"ranks: {WORLD.size} do not make {request.param} groups")
    yield Groups.from_world(request.param, gradients="torch")
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.fixture
def several(group: Groups) -> Groups:
    """Return a group of several ranks."""
    if group.size == 1:
        pytest.skip("ranks: one averages nothing")
    return group


class Model(nn.Module):
    """Two linear layers around a batch normalization; each rank makes its own weights and statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.norm.running_mean = torch.full((8,), float(WORLD.rank))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.norm(self.first(inputs)))


def flat(tensors: Iterator[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def assert_same(groups: Groups, tensor: Tensor) -> None:
    assert all((tensor.numpy() == other).all() for other in groups.comm.allgather(tensor.numpy()))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, passes: int) -> None:
    """Make a step of this many backward passes, with inputs of this rank."""
    for _ in range(passes):
        model(torch.randn(8, 4)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_ranks_begin_with_the_leader_s_model_and_keep_their_own_statistics(several: Groups) -> None:
    model = Model()
    distributed, optimizer = several.distribute(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert distributed.module is model  # so the names in checkpoints are its own
    assert_same(several, flat(model.parameters()))
    assert_same(several, flat(model.buffers()))
    train(distributed, optimizer, 1)
    assert_same(several, flat(model.parameters()))
    means = several.comm.allgather(model.norm.running_mean.tolist())
    assert len(set(map(tuple, means))) == several.size


@pytest.mark.parametrize("compiled", ["not", "inside", "outside"])
def test_gradients_are_averages_after_the_last_micro_batch(several: Groups, compiled: str) -> None:
    torch.manual_seed(WORLD.rank)
    inner = Model()
    optimizer = torch.optim.SGD(inner.parameters(), lr=0.1)
    model = torch.compile(inner, backend="eager") if compiled == "inside" else inner
    model, optimizer = several.distribute(model, optimizer, micro_batches=2)
    model = torch.compile(model, backend="eager") if compiled == "outside" else model
    for _ in range(2):
        for _ in range(2):
            model(torch.randn(8, 4)).square().mean().backward()
        assert_same(several, flat(each.grad for each in inner.parameters()))
        optimizer.step()
        optimizer.zero_grad()


def test_a_wait_for_averages_begins_when_all_gradients_are_there(several: Groups) -> None:
    model, found = Model(), []
    distributed, optimizer = several.distribute(model, torch.optim.SGD(model.parameters(), lr=0.1), micro_batches=2)
    several.on_wait(lambda: found.append(sum(each.grad is not None for each in model.parameters())))
    for _ in range(3):
        train(distributed, optimizer, 2)
    assert found == [len(list(model.parameters()))] * 3


@pytest.mark.parametrize("passes", [1, 3, 5])
def test_a_step_averages_whatever_number_of_passes_it_has(several: Groups, passes: int) -> None:
    """Check the last step of an epoch, which may have fewer micro-batches."""
    model = Model()
    distributed, optimizer = several.distribute(model, torch.optim.SGD(model.parameters(), lr=0.1), micro_batches=3)
    for number in (3, passes, 3):
        train(distributed, optimizer, number)
        assert_same(several, flat(model.parameters()))


def test_gradients_of_the_module_inside_are_averaged_at_the_step(several: Groups) -> None:
    model = Model()
    _, optimizer = several.distribute(model, torch.optim.SGD(model.parameters(), lr=0.1))
    for _ in range(2):
        train(model, optimizer, 1)
        assert_same(several, flat(model.parameters()))
    model(torch.randn(8, 4)).sum().backward()
    with several.averaged_gradients(optimizer):
        assert_same(several, flat(each.grad for each in model.parameters()))


def test_parameters_of_no_optimizer_are_left_alone(several: Groups) -> None:
    """Check rows of a head that is split over the ranks: shapes and values differ."""
    torch.manual_seed(WORLD.rank)
    model = Model()
    model.last = nn.Linear(8, 3 + several.rank)
    before = model.last.weight.detach().clone()
    updated = [*model.first.parameters(), *model.norm.parameters()]
    distributed, optimizer = several.distribute(model, torch.optim.SGD(updated, lr=0.1))
    assert torch.equal(model.last.weight, before)
    train(distributed, optimizer, 1)
    assert_same(several, flat(updated))


def test_a_parameter_without_gradient_is_an_error_that_names_it(several: Groups) -> None:
    model = Model()
    model.other = nn.Linear(2, 2)
    distributed, optimizer = several.distribute(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(UserError, match=r"does not depend on other.weight, other.bias, .* freeze"):
        train(distributed, optimizer, 1)


def test_a_group_of_one_rank_needs_no_wrapper(world: MPI.Intracomm) -> None:
    if world.size > 1:
        pytest.skip("ranks: more than one")
    groups, model = Groups.from_world(1, gradients="torch"), Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert groups.distribute(model, optimizer) == (model, optimizer)
    assert not dist.is_initialized()


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_ranks_split_a_vocabulary(group: Groups, reduction: str) -> None:
    case = random_linear_case(rows=20, temperature=2.0, label_smoothing=0.1)
    begin, end = (110 * rank // group.size for rank in (group.rank, group.rank + 1))
    factors = torch.linspace(-1, 2, 20, dtype=torch.float64) if reduction == "none" else 0.5
    assert_matches_reference(
        replace(case, classes=slice(begin, end)),
        reduction,
        factors,
        chunk_tokens=6,
        vocab_parallel=group.vocab_parallel(end - begin),
    )
