"""Gradient noise scale: against distributions whose noise is known, and of gradients of all kinds."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hpcdistill.distributed.groups import Groups
from hpcdistill.training.noise import LARGEST, OVERHEAD, GradientNorms, NoiseScale, estimate
from synchronizations import recorded_synchronizations

SIZE, D = 8, 3
"""Examples of a batch, and their dimensions."""

MICRO_BATCHES = {1: 4, 2: 2, 4: 1}
"""Micro-batches of each rank, by the number of ranks, so that a batch has four."""


# The estimates.


@given(
    parts=st.integers(2, 3),
    examples=st.integers(1, 2),
    values=st.lists(st.floats(-10, 10), min_size=1, max_size=3),
)
def test_the_estimates_have_no_bias(parts: int, examples: int, values: list[float]) -> None:
    """Average them over all batches, equally probable, of examples whose gradients take a few values."""
    each = torch.tensor(values, dtype=torch.float64)
    batches = torch.cartesian_prod(*[each] * (parts * examples)).view(-1, parts, examples).mean(-1)
    of_parts, of_average = batches.square().mean(1), batches.mean(1).square()
    found = [estimate(*pair, parts, examples) for pair in zip(of_parts.tolist(), of_average.tolist(), strict=True)]
    assert math.fsum(one.square for one in found) / len(found) == pytest.approx(each.mean().item() ** 2, abs=1e-9)
    variance = each.var(correction=0).item()
    assert math.fsum(one.variance for one in found) / len(found) == pytest.approx(variance, abs=1e-9)


def test_the_scale_is_the_quotient_of_the_averages() -> None:
    noise = NoiseScale(parts=2, examples=10)
    noise.add(of_parts=5.0, of_average=3.0)  # |G|² = 1, tr Σ = 40
    values = noise.add(of_parts=9.0, of_average=6.0)  # |G|² = 3, tr Σ = 60
    assert values["gradient_square"] == 3
    assert values["gradient_variance"] == 60
    assert values["noise_scale"] == pytest.approx((0.95 * 40 + 60) / (0.95 * 1 + 3))
    assert values["critical_batch"] == pytest.approx(OVERHEAD * values["noise_scale"])
    again = NoiseScale(parts=2, examples=10)
    again.restore({"gradient_square": 1.0, "gradient_variance": 40.0})
    again.restore({"loss": 1.0})
    assert again.add(9.0, 6.0) == values


def test_measurements_without_signal_or_sense() -> None:
    noise = NoiseScale(parts=2, examples=10)
    assert noise.add(0.0, 0.0) == {"gradient_square": 0, "gradient_variance": 0}
    values = noise.add(of_parts=5.0, of_average=2.0)  # |G|² = -1
    assert (values["gradient_square"], values["noise_scale"]) == (-1, pytest.approx(LARGEST))
    for count, number in enumerate((math.nan, math.inf), 1):
        assert noise.add(number, 1.0) == {"noise_skipped": count}
    again = NoiseScale(parts=2, examples=10)
    again.restore(values)
    again.restore({"noise_skipped": 2})
    assert again.add(of_parts=50.0, of_average=45.0) == noise.add(of_parts=50.0, of_average=45.0)
    assert again.add(math.nan, 1.0) == {"noise_skipped": 3}


# Gradients in training steps.


def step(
    model: nn.Module, optimizer: Any, inputs: Tensor, micro_batches: int, groups: Groups, examined: nn.Module
) -> tuple[float, float]:
    """Make a step whose loss is the mean of the outputs; return L and T.

    They are the mean squared norm of the group's micro-batches, and the squared norm of the mean.
    """
    norms = GradientNorms(examined, optimizer, micro_batches)
    with norms.watch():
        for micro_batch in inputs.chunk(micro_batches):
            (model(micro_batch).mean() / micro_batches).backward()
    with groups.averaged_gradients(optimizer):
        norms.measure_average()
        optimizer.step()
    optimizer.zero_grad()
    assert norms.of_parts is not None
    assert norms.of_average is not None
    return groups.sum(norms.of_parts.item()) / groups.size, norms.of_average.item()


@pytest.fixture(scope="module", params=["horovod", "torch"])
def backend(request: pytest.FixtureRequest) -> Iterator[Groups]:
    """Make all ranks one group."""
    groups = Groups.from_world(1, gradients=request.param)
    if groups.size not in MICRO_BATCHES:
        pytest.skip(f"ranks: {groups.size} do not share 4 micro-batches")
    yield groups
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_ranks_and_micro_batches_measure_alike(backend: Groups, make: Any, precision: torch.dtype) -> None:
    """Compare with gradients that are known: 1 rank has 4 micro-batches, each of 2 has 2, each of 4 has 1."""
    micro_batches = MICRO_BATCHES[backend.size]
    model = nn.Linear(D, 1, bias=False, dtype=precision)  # whose gradient for an example is the example
    distributed, optimizer = backend.distribute(model, make(model.parameters(), lr=1e-3), micro_batches)
    random = torch.Generator().manual_seed(0)
    squares = torch.zeros(D)
    for number in range(4):
        inputs = torch.randint(-4, 5, (SIZE, D), generator=random)  # their means are exact in bfloat16
        inputs[:, 0] *= number > 1  # the first weight has no gradient, and no second moment, before
        mine = inputs.to(precision).chunk(backend.size)[backend.rank]
        found = step(distributed, optimizer, mine, micro_batches, backend, model)
        scale = torch.ones(D)
        if make is torch.optim.AdamW and number:
            moments = squares / (1 - 0.999**number)
            floor = 0.1 * moments.mean().sqrt()
            scale = 1 / moments.sqrt().maximum(floor)
        parts = (inputs * scale).view(4, -1, D).mean(1)
        expected = (parts.square().sum(1).mean().item(), parts.mean(0).square().sum().item())
        assert found == pytest.approx(expected, rel=1e-4 if precision == torch.float32 else 3e-2)
        squares = 0.999 * squares + 0.001 * inputs.float().mean(0) ** 2


@pytest.mark.alone
def test_the_noise_of_a_linear_model() -> None:
    """Measure 1000 steps with gradients N(1, 4) in 3 dimensions: |G|² = 3, tr Σ = 12; standard errors are 3 and 2 %."""
    model = nn.Linear(D, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    random = torch.Generator().manual_seed(0)
    estimates = []
    for _ in range(1000):
        inputs = 1 + 2 * torch.randn(SIZE, D, generator=random)
        estimates.append(estimate(*step(model, optimizer, inputs, 4, Groups.single(), model), 4, SIZE / 4))
    square, variance = (sum(each) / len(estimates) for each in zip(*estimates, strict=True))
    assert square == pytest.approx(3, rel=0.2)
    assert variance == pytest.approx(12, rel=0.15)


class Mixed(nn.Module):
    """Model with a frozen and an unused layer, one that is used twice and computed again, and an embedding."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, D, sparse=sparse)
        self.shared, self.frozen, self.unused = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D)
        self.frozen.requires_grad_(False)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.frozen(self.shared(self.embedding(tokens)))
        return checkpoint(self.shared, hidden, use_reentrant=False)


class OneMoment(torch.optim.SGD):
    """Optimizer whose state looks like Adam's for one of its parameters only."""

    def step(self, closure: Any = None) -> None:
        super().step(closure)
        parameter = self.param_groups[0]["params"][0]
        self.state[parameter]["exp_avg_sq"] = torch.ones_like(parameter)


@pytest.mark.alone
@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")  # of Adagrad
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adagrad, torch.optim.Adam, OneMoment])
def test_gradients_of_all_kinds(make: Any, sparse: bool) -> None:
    """Compare two micro-batches with gradients that autograd computes apart; the optimizer's state is a step's."""
    torch.manual_seed(0)
    model = Mixed(sparse)
    optimizer = make([each for each in model.parameters() if each.requires_grad], lr=0.1)
    tokens = torch.tensor([[1, 2, 2], [3, 1, 4]])
    if make is torch.optim.Adam:
        with torch.no_grad():
            for parameter in model.parameters():
                state = {"step": torch.tensor(1.0), "exp_avg_sq": 1e-3 * torch.rand_like(parameter) ** 4}
                if parameter is not model.unused.weight:
                    optimizer.state[parameter] = state
    else:
        model(tokens).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    def scaled(parameter: Tensor, gradient: Tensor | None) -> Tensor:
        if gradient is None:
            return torch.zeros(parameter.numel())
        dense = gradient.to_dense()
        if make is torch.optim.Adam:
            moments = optimizer.state[parameter]["exp_avg_sq"] / 1e-3
            dense = dense / moments.sqrt().maximum(0.1 * moments.mean().sqrt())
        return dense.flatten()

    trained = [each for each in model.parameters() if each.requires_grad]
    gradients = []
    for micro_batch in tokens:
        found = torch.autograd.grad(model(micro_batch).mean(), trained, allow_unused=True)
        gradients.append(torch.cat([scaled(*pair) for pair in zip(trained, found, strict=True)]))
    parts = torch.stack(gradients)
    optimizer.step = lambda: None
    expected = parts.square().sum(1).mean().item(), parts.mean(0).square().sum().item()
    assert step(model, optimizer, tokens, 2, Groups.single(), model) == pytest.approx(expected, rel=1e-4)


@pytest.mark.alone
def test_measuring_changes_no_gradient_and_makes_no_host_wait() -> None:
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, 1)), torch.randn(SIZE, D)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(2):
        model(inputs).mean().backward()
        plain = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
        optimizer.zero_grad()
        norms = GradientNorms(model, optimizer, 1)
        with recorded_synchronizations() as found:
            with norms.watch():
                model(inputs).mean().backward()
            norms.measure_average()
        assert found == []
        for parameter, gradient in zip(model.parameters(), plain, strict=True):
            assert parameter.grad is not None
            assert torch.equal(parameter.grad, gradient)
        torch.testing.assert_close(norms.of_parts, norms.of_average)
        optimizer.step()
        optimizer.zero_grad()
    norms.of_parts = None
    model(inputs).mean().backward()
    assert norms.of_parts is None  # the hooks are gone
