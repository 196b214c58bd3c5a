"""Equal costs and equal tuning of a study's arms."""

import math
import re
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from repository import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

from equal_cost import Arm, Found, Regime, Setting, affordable, compare, cost_of, table, training
from hpcdistill.storage.metrics import GroupMetrics
from study import Run, Study
from study_little_data import arms

pytestmark = pytest.mark.alone

ONE = Arm("one")
PEERS = Arm("codistilled", groups=2, teachers=1)
REGIME = Regime("text", "language", ("--data.path=x.h5",), 16, 1200, (1e-3, 1e-2), (0.0, 0.1, 1.0))


def test_a_step_costs_three_forward_passes_and_each_teacher_one_more_after_the_burn_in() -> None:
    assert cost_of(ONE, 10, 0) == 30
    assert cost_of(Arm("double", batch=2), 10, 0) == 60
    assert cost_of(PEERS, 10, 4) == 2 * (30 + 6)
    assert cost_of(PEERS, 3, 4) == 2 * 9  # within the burn-in


@pytest.mark.parametrize(
    ("arm", "expected"),
    [
        (ONE, (400, 100)),
        (Arm("double", batch=2), (200, 50)),
        (Arm("apart", groups=2), (200, 50)),
        (PEERS, (160, 40)),  # 2 · (3 · 160 + 120) = 1200
        (Arm("self", teachers=1), (320, 80)),  # 3 · 320 + 240 = 1200
    ],
)
def test_all_arms_have_the_same_cost(arm: Arm, expected: tuple[int, int]) -> None:
    assert affordable(arm, 1200, 0.25) == expected


def test_the_arms_of_little_data_spend_the_same_and_differ_in_name() -> None:
    each = arms()
    for arm in each.values():
        steps, burn_in = affordable(arm, 6000, 0.25)
        assert 5990 < cost_of(arm, steps, burn_in) <= 6000
    assert len({(arm.name, arm.is_ensemble) for arm in each.values()}) == len(each) == 9


def test_a_cost_is_never_exceeded_and_one_more_step_would_exceed_it() -> None:
    for cost in range(40, 90):
        steps, burn_in = affordable(PEERS, cost, 0.3)
        assert cost_of(PEERS, steps, burn_in) <= cost < cost_of(PEERS, steps + 1, int(0.3 * (steps + 1)))


def test_a_cost_of_less_than_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match="a cost of 5 forward passes is less than one step of 'codistilled'"):
        affordable(PEERS, 5, 0.0)


def test_each_arm_is_tried_at_each_rate_and_weight_decay() -> None:
    assert len(REGIME.settings) == len(set(REGIME.settings)) == 6
    names = {training(REGIME, ONE, setting, seed).name for setting in REGIME.settings for seed in (0, 1)}
    assert len(names) == 12


def test_a_training_has_the_length_that_its_arm_can_pay() -> None:
    run = training(REGIME, PEERS, Setting(1e-2, 0.1), 3)
    assert run.ranks == 2
    assert {"--groups=2", "--train.steps=160", "--codistill.burn_in=40", "--data.batch_size=16"} <= {*run.options}
    assert {"--optimizer.lr=0.01", "--optimizer.weight_decay=0.1", "--seed=3"} <= {*run.options}


class Recorded:
    """Study whose trainings take no time: the loss falls from 4 to 2, with twice the batch to 1, in half of the steps.

    It ends lower by the rate, but is not finite at a rate of 0.1.
    """

    def train(self, runs: Iterable[Run], together: int) -> dict[str, list[GroupMetrics]]:
        return {run.name: self.metrics(run.name) for run in runs}

    def metrics(self, name: str) -> list[GroupMetrics]:
        found = re.fullmatch(r"text/(\w+)-lr([\d.e-]+)-wd[\d.]+-\d+", name)
        assert found
        arm, rate = found[1], float(found[2])
        begin = math.nan if rate == 0.1 else 4.0
        end = begin - (3.0 if arm == "double" else 2.0) - rate
        steps = 400 if arm == "one" else 200
        losses = {0: begin, steps // 2: end, steps: end}
        return [GroupMetrics(Path(), 0, {}, [{"step": at, "validation_loss": loss} for at, loss in losses.items()])]


def test_each_arm_is_judged_at_its_best_finite_setting_and_by_its_cost_to_the_first_arm_s_loss() -> None:
    regime = replace(REGIME, cost=1202, rates=(1e-1, 1e-2, 1e-3), decays=(0.0,))
    both = {"one": ONE, "one, twice the batch": Arm("double", batch=2)}
    found, runs = compare(cast(Study, Recorded()), regime, both, seeds=(1, 2))
    assert len(runs) == 2 * 3 + 2 * 2
    assert [each.setting.rate for each in found.values()] == [1e-2, 1e-2]
    assert [len(each.tried) for each in found.values()] == [3, 3]
    one, double = found.values()
    assert one.losses == [1.99] * 2
    assert double.losses == [0.99] * 2
    assert one.costs == [0.5] * 2  # at half of its steps
    assert double.costs == pytest.approx([0.5 * (4 - 1.99) / (4 - 0.99)] * 2)


def test_differences_are_paired_by_seed() -> None:
    """Losses that vary by 2 between seeds differ by 1 in each of them: the interval of the difference is 0."""
    setting = Setting(1e-2, 0.1)
    one = Found(setting, {}, 400, [2.0, 4.0], [300, 400], [1.0, 1.0])
    other = Found(setting, {}, 200, [1.0, 3.0], [200, 200], [0.5, 0.7])
    lines = table({"one": one, "other": other}, "one").splitlines()
    assert lines[3].split(" | ")[4] == "-1.0000 ± 0.0000"
    assert lines[2].split(" | ")[4] == "-"
