"""Steps towards the mean of snapshots, and equal costs, of the study of averaged weights."""

import sys
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from repository import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

from averaging_loop import Averaging
from equal_cost import affordable, cost_of
from study_averaging import ARMS, BURN_IN, CHOICES, COST

pytestmark = pytest.mark.alone


def model_of(value: float) -> nn.Module:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


def test_weights_move_by_the_difference_of_snapshots_of_the_same_step() -> None:
    model, staleness = model_of(1.0), {1: 10}
    theirs = [[torch.full((1, 1), 5.0)]]
    peers = cast(Any, SimpleNamespace(predict=lambda: theirs if staleness else [], staleness=staleness))
    averaging = Averaging(model, peers, strength=0.5)
    staleness.clear()
    averaging.step(10)  # no snapshot has arrived
    assert model.weight.item() == 1.0
    nn.init.constant_(model.weight, 2.0)
    staleness[1] = 10
    averaging.step(20)
    assert model.weight.item() == 2.0 + 0.5 * (5.0 - 1.0) / 2  # 1.0 was published at step 10, as was 5.0
    staleness[1] = 20
    averaging.step(30)  # the same snapshot again
    assert model.weight.item() == 3.0
    staleness[1] = -5
    averaging.step(40)  # of a peer that is ahead
    assert model.weight.item() == 3.0 + 0.5 * (5.0 - 3.0) / 2


def test_all_arms_cost_the_same_and_have_as_many_settings() -> None:
    for arm in ARMS.values():
        steps, burn_in = affordable(arm, COST, BURN_IN)
        assert 0.99 * COST < cost_of(arm, steps, burn_in) <= COST
    assert {len(choices) for choices in CHOICES.values()} == {2}
    assert CHOICES.keys() == ARMS.keys()
