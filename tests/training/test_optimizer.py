"""Optimizers by their names, what they decay, and what they take from a checkpoint."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from hpcdistill.config.optimizer import OptimizerConfig
from hpcdistill.distributed.communicator import Communicator
from hpcdistill.distributed.groups import Groups
from hpcdistill.errors import UserError
from hpcdistill.training.optimizer import build_optimizer, load_optimizer_state


class Model(nn.Module):
    """Layers whose biases and scales come between the matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Conv1d(1, 2, 3))


class Stateful(torch.optim.Optimizer):
    """Optimizer with an argument that it needs, one that it keeps to itself, and a counter in its groups."""

    def __init__(self, params: Any, lr: float, *, power: float, scale: float = 1.0) -> None:
        super().__init__(params, {"lr": lr, "scale": scale, "count": 0})
        self.power = power

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        for group in self.param_groups:
            group["count"] += 1
            for parameter in group["params"]:
                parameter -= group["lr"] * group["scale"] * parameter.grad**self.power


STATEFUL = f"{__name__}:Stateful"


@pytest.fixture(params=[1, 2])
def group(request: pytest.FixtureRequest, world: Communicator) -> Iterator[Groups]:
    """Yield a group that is the whole world, or half of it, with Horovod where there is MPI."""
    if world.size % request.param:
        pytest.skip(f"ranks: {world.size} do not make {request.param} groups")
    groups = Groups.from_world(request.param)
    yield groups
    if groups.has_mpi and groups.size > 1:
        import horovod.torch as hvd

        hvd.shutdown()


def test_only_matrices_decay() -> None:
    model = Model()
    optimizer = build_optimizer(OptimizerConfig(name="sgd", lr=0.5, weight_decay=0.1), model)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 1 - 0.5 * 0.1 if parameter.ndim > 1 else 1.0
        torch.testing.assert_close(parameter, factor * before[name], msg=name)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("adamw", {"betas": [0.8, 0.9], "eps": 1e-3, "fused": True}),
        ("sgd", {"momentum": 0.9, "nesterov": True}),
        ("torch.optim:Adagrad", {"initial_accumulator_value": 0.1}),
    ],
)
def test_a_group_updates_as_the_class_itself_does(group: Groups, name: str, args: dict[str, Any]) -> None:
    """Wrap it for the ranks of a group, too: Horovod makes the optimizer a second time."""
    torch.manual_seed(0)
    one, other = Model(), Model()
    other.load_state_dict(one.state_dict())
    config = OptimizerConfig(name=name, args=args, lr=0.1)
    class_ = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}.get(name, torch.optim.Adagrad)
    reference = class_(other.parameters(), lr=0.1, weight_decay=0, **args)
    one, optimizer = group.distribute(one, build_optimizer(config, one))
    for _ in range(3):
        for mine, its in zip(one.parameters(), other.parameters(), strict=True):
            mine.grad = torch.randn_like(mine)
            its.grad = mine.grad.clone()
        optimizer.step()
        reference.step()
    for mine, its in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, its)


def test_a_class_gets_arguments_that_are_not_in_its_groups(group: Groups) -> None:
    model = nn.Linear(1, 1)
    config = OptimizerConfig(name=STATEFUL, args={"power": 2.0, "scale": 0.5}, lr=0.1)
    _, optimizer = group.distribute(model, build_optimizer(config, model))
    before = model.weight.item()
    model.weight.grad, model.bias.grad = torch.full((1, 1), 3.0), torch.zeros(1)
    optimizer.step()
    assert before - model.weight.item() == pytest.approx(0.1 * 0.5 * 3.0**2)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("nowhere:Class", {}, "optimizer.name = 'nowhere:Class' cannot be imported (No module named 'nowhere')"),
        ("torch.nn:Linear", {}, "optimizer.name = 'torch.nn:Linear' is no subclass of torch.optim.Optimizer"),
        ("adamw", {"args": {"momentum": 0.9}}, "'adamw' does not take momentum; it takes lr, betas, eps, weight_decay"),
        (
            STATEFUL,
            {"args": {"power": 1}, "weight_decay": 0.1},
            "does not take weight_decay; it takes lr, power, scale",
        ),
        (STATEFUL, {}, "missing 1 required keyword-only argument: 'power'"),
        ("sgd", {"args": {"nesterov": True}}, "Nesterov momentum requires a momentum"),
        ("torch.optim:LBFGS", {}, "'torch.optim:LBFGS' computes the loss several times in a step"),
        ("torch.optim:Muon", {}, "Muon only supports 2D parameters"),
    ],
)
def test_mistakes_are_named(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        build_optimizer(OptimizerConfig(name=name, **settings), Model())


def test_a_resumed_run_obeys_its_configuration() -> None:
    model = Model()
    before = OptimizerConfig(name="sgd", args={"momentum": 0.9}, lr=0.1, weight_decay=0.1)
    state = build_optimizer(before, model).state_dict()
    after = OptimizerConfig(name="sgd", args={"momentum": 0.5}, lr=0.2, weight_decay=0.3)
    optimizer = build_optimizer(after, model)
    load_optimizer_state(after, optimizer, state)
    assert [(group["lr"], group["momentum"], group["weight_decay"]) for group in optimizer.param_groups] == [
        (0.2, 0.5, 0.3),
        (0.2, 0.5, 0.0),
    ]


def test_counters_of_an_optimizer_are_restored() -> None:
    model = nn.Linear(1, 1)
    config = OptimizerConfig(name=STATEFUL, args={"power": 1.0})
    state = build_optimizer(config, model).state_dict()
    state["param_groups"][0] |= {"count": 7, "scale": 3.0}
    optimizer = build_optimizer(config, model)
    load_optimizer_state(config, optimizer, state)
    assert (optimizer.param_groups[0]["count"], optimizer.param_groups[0]["scale"]) == (7, 1.0)
