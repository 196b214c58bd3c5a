"""Learning rate and weight decay by step, and when distillation begins."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hpcdistill.config.optimizer import OptimizerConfig
from hpcdistill.config.schema import Config
from hpcdistill.errors import UserError
from hpcdistill.models.registry import config_class
from hpcdistill.training.optimizer import build_optimizer
from hpcdistill.training.schedule import learning_rate, set_rates

pytestmark = pytest.mark.alone


def rates(steps: int, **config: Any) -> list[float]:
    return [learning_rate(OptimizerConfig(lr=8.0, **config), step, steps) for step in range(steps)]


def test_warm_up_then_decay_to_the_floor_after_the_last_step() -> None:
    assert rates(4) == [8.0] * 4
    assert rates(6, warmup=3) == [2.0, 4.0, 6.0, 8.0, 8.0, 8.0]
    assert rates(5, warmup=1, decay="linear") == [4.0, 8.0, 6.0, 4.0, 2.0]
    assert rates(4, decay="cosine") == pytest.approx([8.0, 4 + 8**0.5, 4.0, 4 - 8**0.5])
    assert rates(4, decay="linear", floor=0.5) == [8.0, 7.0, 6.0, 5.0]
    assert rates(4, decay="cosine", floor=0.25) == pytest.approx([8.0, 5 + 4.5**0.5, 5.0, 5 - 4.5**0.5])
    assert rates(8, warmup=1, decay="wsd", decay_steps=4) == [4.0, 8.0, 8.0, 8.0, 8.0, 6.0, 4.0, 2.0]
    assert rates(4, decay="wsd", decay_steps=2, floor=0.5) == [8.0, 8.0, 8.0, 6.0]


def config(**sections: Any) -> Config:
    return config_class()(run_dir=Path("x"), data={"path": "y"}, **sections)


def test_a_step_moves_weights_by_the_rate_of_that_step() -> None:
    run = config(optimizer={"lr": 0.5, "warmup": 1})
    model = nn.Linear(1, 1, bias=False)
    optimizer = build_optimizer(run.optimizer, model)
    for step, rate in enumerate((0.25, 0.5)):
        before = model.weight.item()
        model.weight.grad = torch.ones(1, 1)  # the first step of Adam is as long as its learning rate
        set_rates(optimizer, run, step, distill_weight=0.0)
        optimizer.step()
        assert before - model.weight.item() == pytest.approx(rate, rel=1e-4)


def test_rate_and_weight_decay_follow_the_distillation_term() -> None:
    codistill = {"weight": 4.0, "lr_scale": 0.5, "weight_decay": 0.0}
    run = config(
        optimizer={"lr": 1.0, "weight_decay": 0.25, "decay": "linear"}, codistill=codistill, train={"steps": 8}
    )
    optimizer = build_optimizer(run.optimizer, nn.Linear(1, 1))
    seen = []
    for step, weight in enumerate((0.0, 1.0, 2.0, 4.0, 4.0)):
        set_rates(optimizer, run, step, weight)
        seen.append([(group["lr"], group["weight_decay"]) for group in optimizer.param_groups])
    rate = [1.0, 7 / 8 * 7 / 8, 6 / 8 * 3 / 4, 5 / 8 / 2, 4 / 8 / 2]
    decay = [0.25, 0.1875, 0.125, 0.0, 0.0]
    assert seen == [[(r, d), (r, 0.0)] for r, d in zip(rate, decay, strict=True)]


def test_weight_decay_that_the_optimizer_does_not_have_is_refused() -> None:
    run = config(optimizer={"name": "torch.optim:Rprop"}, codistill={"weight_decay": 0.1})
    with pytest.raises(
        UserError, match=r"codistill.weight_decay = 0.1, but optimizer.name = 'torch.optim:Rprop' has no"
    ):
        set_rates(build_optimizer(run.optimizer, nn.Linear(1, 1)), run, 0, 0.0)
