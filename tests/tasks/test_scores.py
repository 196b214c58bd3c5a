"""Scores, compared with their definitions."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpcdistill.tasks.objective import Softmax
from hpcdistill.tasks.scores import BinaryScores, ClassScores, auc, calibration_error

pytestmark = pytest.mark.alone

ROWS = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30)


@given(ROWS)
def test_auc_is_the_share_of_pairs_in_the_right_order(rows: list[tuple[int, bool]]) -> None:
    yes, no = ([score for score, label in rows if label is which] for which in (True, False))
    pairs = [1.0 if y > n else 0.5 if y == n else 0.0 for y, n in product(yes, no)]
    found = auc(np.array([score for score, _ in rows]), np.array([label for _, label in rows]))
    if pairs:
        assert found == pytest.approx(sum(pairs) / len(pairs))
    else:
        assert math.isnan(found)


def test_calibration_error_of_a_constructed_example() -> None:
    """Ten predictions for ten rows each are all exact, but the last two, which are wrong by 0.3 and 0.1."""
    promised = np.arange(10) / 10
    kept = promised + np.array([0] * 8 + [-0.3, 0.1])
    labels = np.array([row < round(10 * share) for share in kept for row in range(10)])
    order = np.random.default_rng(0).permutation(100)
    assert calibration_error(np.repeat(promised, 10)[order], labels[order]) == pytest.approx((0.3 + 0.1) / 10)


def test_whoever_always_predicts_the_mean_is_calibrated() -> None:
    labels = np.random.default_rng(0).random(1000) < 0.3
    assert calibration_error(np.full(1000, labels.mean()), labels) == pytest.approx(0, abs=1e-12)


def test_bins_hold_equally_many_rows() -> None:
    """The errors of different predictions in a bin cancel: here 1 and 0 for its rows, one half for the bin."""
    chances = np.linspace(0.0, 1.0, 40)
    labels = np.tile([True, False, False, True], 10)
    by_bin = np.abs(chances - labels).sum()
    expected = sum(abs((chances - labels)[begin : begin + 4].sum()) for begin in range(0, 40, 4))
    assert calibration_error(chances, labels) == pytest.approx(expected / 40) != by_bin / 40


def test_binary_scores_of_a_few_rows() -> None:
    scores = BinaryScores(bayes_log_loss=0.25)
    scores.add(torch.tensor([math.log(3), -math.log(3)]), torch.tensor([1.0, 1.0]))  # 3/4 and 1/4
    scores.add(torch.tensor([-math.log(3)]), torch.tensor([0.0]))
    loss = -(math.log(3 / 4) + math.log(1 / 4) + math.log(3 / 4)) / 3
    expected = {
        "log_loss": loss,
        "above_bayes": loss - 0.25,
        "auc": 0.75,
        "accuracy": 2 / 3,
        "calibration": (5 / 4) / 2,
        "calibration_error": (1 / 4 + abs(1 / 2 - 1)) / 3,
    }
    assert scores.result() == pytest.approx(expected, rel=1e-6)


def test_what_has_no_value_is_nan() -> None:
    scores = BinaryScores(math.nan)
    scores.add(torch.tensor([2.0]), torch.tensor([0.0]))
    result = scores.result()
    assert [name for name, score in result.items() if math.isnan(score)] == ["above_bayes", "auc", "calibration"]
    assert result["accuracy"] == 0


def test_class_scores_are_those_of_all_batches_as_one() -> None:
    outputs, target = torch.randn(3, 4, 5), torch.randint(5, (3, 4))
    scores = ClassScores(Softmax(5))
    for batch in (slice(0, 1), slice(1, 3)):
        scores.add(outputs[batch], target[batch])
    chances = outputs.double().softmax(-1)
    loss = -chances.gather(-1, target[..., None]).log().mean().item()
    right = (chances.argmax(-1) == target).double().mean().item()
    assert scores.result() == pytest.approx({"loss": loss, "perplexity": math.exp(loss), "accuracy": right}, rel=1e-6)
