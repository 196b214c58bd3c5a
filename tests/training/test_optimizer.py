"""Learning rate schedules, and the optimizers by their names."""

import pytest
import torch
from torch import nn

from hpcdistill.config.optimizer import OptimizerConfig
from hpcdistill.training.optimizer import build_optimizer, learning_rate, set_learning_rate


def rates(steps: int, **config: object) -> list[float]:
    return [learning_rate(OptimizerConfig(lr=8.0, **config), step, steps) for step in range(steps)]


def test_warm_up_then_decay_to_zero_after_the_last_step() -> None:
    assert rates(4) == [8.0] * 4
    assert rates(6, warmup=3) == [2.0, 4.0, 6.0, 8.0, 8.0, 8.0]
    assert rates(5, warmup=1, decay="linear") == [4.0, 8.0, 6.0, 4.0, 2.0]
    assert rates(4, decay="cosine") == pytest.approx([8.0, 4 + 8**0.5 * 1.0, 4.0, 4 - 8**0.5 * 1.0])


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_a_step_moves_weights_by_the_rate_of_that_step(name: str) -> None:
    config = OptimizerConfig(name=name, lr=0.5, warmup=1)
    model = nn.Linear(1, 1, bias=False)
    optimizer = build_optimizer(config, model)
    for step, rate in enumerate((0.25, 0.5)):
        before = model.weight.item()
        model.weight.grad = torch.ones(1, 1)  # the first step of Adam is as long as its learning rate
        set_learning_rate(optimizer, config, step, steps=2)
        optimizer.step()
        assert before - model.weight.item() == pytest.approx(rate, rel=1e-4)


def test_momentum_and_weight_decay_reach_the_optimizer() -> None:
    sgd = build_optimizer(OptimizerConfig(name="sgd", momentum=0.9, weight_decay=0.1), nn.Linear(1, 1))
    adam = build_optimizer(OptimizerConfig(weight_decay=0.2), nn.Linear(1, 1))
    assert (sgd.defaults["momentum"], sgd.defaults["weight_decay"], adam.defaults["weight_decay"]) == (0.9, 0.1, 0.2)
