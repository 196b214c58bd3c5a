"""Draws of means have the distribution that few measurements justify."""

import numpy as np
import pytest

from hpcdistill.planning import draws

pytestmark = pytest.mark.alone


def test_means_of_pairs_and_what_is_computed_from_them_are_distributed_by_student_s_t() -> None:
    """Compare any weighted sum of both means with the mean of the weighted sums, whose distribution is known."""
    rng = np.random.default_rng(0)
    pairs = rng.normal((3.0, 500.0), (1.0, 80.0), (4, 2)) @ np.array([[1.0, 40.0], [0.0, 1.0]])  # correlated
    first, second = draws.pair_means(rng, [(one, other) for one, other in pairs.tolist()])
    for weights in ((1.0, 0.0), (0.0, 1.0), (1.0, 0.01), (-1.0, 0.02)):
        found = draws.interval(weights[0] * first + weights[1] * second)
        known = draws.interval(draws.mean(rng, (pairs @ weights).tolist()))
        scale = known.high - known.low
        assert (found.low, found.value, found.high) == pytest.approx(
            (known.low, known.value, known.high), abs=0.1 * scale
        )


def test_means_of_equal_pairs_are_known() -> None:
    first, second = draws.pair_means(np.random.default_rng(0), [(2.0, 30.0)] * 4)
    assert (draws.interval(first), draws.interval(second)) == (
        draws.Interval(2.0, 2.0, 2.0),
        draws.Interval(30.0, 30.0, 30.0),
    )
