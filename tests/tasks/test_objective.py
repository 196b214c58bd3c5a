"""Comparisons of predictions: ensembles, distances, predicted classes."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpcdistill.tasks.objective import Binary, Softmax

pytestmark = pytest.mark.alone

LOGITS = st.lists(st.floats(-30, 30, width=32), min_size=3, max_size=3).map(torch.tensor)


@given(LOGITS, LOGITS)
def test_the_total_variation_distance_is_the_most_that_any_set_of_answers_differs_by(
    one: torch.Tensor, other: torch.Tensor
) -> None:
    gaps = (one.double().softmax(0) - other.double().softmax(0)).tolist()
    sets = [sum(gap for place, gap in enumerate(gaps) if chosen >> place & 1) for chosen in range(8)]
    distance = Softmax(3).distance(one, other)
    assert distance.item() == pytest.approx(max(map(abs, sets)), abs=1e-6)
    assert Softmax(3).distance(one, one).item() == 0


@given(LOGITS, LOGITS)
def test_an_ensemble_predicts_the_mean_of_the_probabilities(one: torch.Tensor, other: torch.Tensor) -> None:
    mean = (one.double().softmax(0) + other.double().softmax(0)) / 2
    assert torch.allclose(Softmax(3).ensemble([one, other]).double(), mean.log(), atol=1e-5)
    alone = Softmax(3).ensemble([one])
    assert torch.allclose(alone.softmax(0), one.softmax(0), atol=1e-6)


@given(LOGITS, LOGITS)
def test_yes_or_no_is_like_two_classes(one: torch.Tensor, other: torch.Tensor) -> None:
    two_classes = [torch.stack([torch.zeros(3), logits], -1) for logits in (one, other)]
    assert torch.allclose(Binary().distance(one, other), Softmax(2).distance(*two_classes), atol=1e-6)
    together = Softmax(2).ensemble(two_classes)
    assert torch.allclose(Binary().ensemble([one, other]), together[:, 1] - together[:, 0], atol=1e-4)
    assert torch.equal(Binary().predict_class(one).long(), Softmax(2).predict_class(two_classes[0]))


def test_an_ensemble_is_never_certain() -> None:
    """Rounded to float32, both probabilities are 1."""
    assert Binary().ensemble([torch.tensor(100.0), torch.tensor(80.0)]).item() == pytest.approx(80 + math.log(2))
