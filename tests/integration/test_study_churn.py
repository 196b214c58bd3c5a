"""Churn, loss and cost of the arms of the study of churn."""

import sys

import pytest
import torch

from repository import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

from equal_cost import Arm as CostArm
from equal_cost import Setting, cost_of
from study_churn import BURN_IN, CODISTILLED, LONGER, PLAIN, Arm, _ratio, measure

pytestmark = pytest.mark.alone

PROBABILITIES = torch.tensor([[[0.5, 0.25], [0.5, 0.75]], [[0.5, 0.75], [0.75, 0.75]]])  # [trainings, groups, rows]
LABELS = torch.tensor([1.0, 0.0])


@pytest.mark.parametrize(
    ("arm", "churn"),
    [
        (Arm(PLAIN, is_independent=True), [0.25, 0.125]),  # both models of each training
        (Arm(CODISTILLED), [(0.25 + 0.375 + 0.0 + 0.125) / 4]),  # each model of one with each of the other
        (Arm(PLAIN, is_ensemble=True), [0.1875]),  # 0.5, 0.5 and 0.625, 0.75
    ],
)
def test_churn_is_the_mean_difference_of_pairs(arm: Arm, churn: list[float]) -> None:
    found = measure(arm, Setting(1e-2, 0.1), PROBABILITIES.logit(), LABELS)
    assert found.churn == pytest.approx(churn)
    assert found.models == (2 if arm.is_ensemble else 1)


def test_the_log_loss_is_that_of_each_training_s_models() -> None:
    found = measure(Arm(PLAIN, is_independent=True), Setting(1e-2, 0.1), PROBABILITIES.logit(), LABELS)
    right = torch.tensor([[0.5, 0.75, 0.5, 0.25], [0.5, 0.25, 0.75, 0.25]])
    assert found.log_loss == pytest.approx((-right.log()).mean(1).tolist())


def test_the_longer_training_of_a_model_costs_as_much_as_two_that_codistil() -> None:
    two = cost_of(CostArm("two", groups=2, teachers=1), 1000, 1000 * BURN_IN)
    assert cost_of(CostArm("one"), 1000 * LONGER.length, 0) == pytest.approx(two)


def test_both_means_contribute_to_the_interval_of_a_ratio() -> None:
    """Means 2 and 4 with half-widths of 12.71 each: a ratio of 1/2, times the root of 6.355² + 3.1775²."""
    assert _ratio([1.0, 3.0], [3.0, 5.0]) == f"0.50 ± {0.5 * (6.355**2 + 3.1775**2) ** 0.5:.2f}"
