"""Laws of steps and time against values computed by hand, and networks as users name them."""

import math

import numpy as np
import pytest

from hpcdistill.errors import UserError
from hpcdistill.planning import draws, laws

pytestmark = pytest.mark.alone


@pytest.mark.parametrize(
    ("noise_scale", "expected"),
    [(0.0, 1.0), (16.0, 0.75), (math.inf, 0.5)],  # batch 16: nothing saved; (1 + 1/2) / (1 + 1); everything
)
def test_a_doubled_batch_saves_steps_as_far_as_there_is_noise(noise_scale: float, expected: float) -> None:
    share = 1.0 if math.isinf(noise_scale) else noise_scale / (16 + noise_scale)
    assert laws.steps_of_batch(np.array([share]), 2)[0] == pytest.approx(expected)


def test_more_groups_have_a_larger_gap() -> None:
    """The variance of a mean of N is 1/N: two groups remove half of it, four three quarters."""
    assert laws.gap_of_groups(np.array([0.1]), 2, 4)[0] == pytest.approx(0.15)
    assert laws.gap_of_groups(np.array([0.1]), 4, 2)[0] == pytest.approx(0.1 / 1.5)


def test_the_gap_is_worth_steps_on_the_curve_of_the_loss() -> None:
    """A loss that is lower by 0.3 · 0.2, at λ = 0.2, is that of exp(0.3) times as many steps."""
    ratio = laws.steps_after_burn_in(np.array([0.2, 0.2]), np.array([0.2, 0.0]), np.array([0.3, 0.3]))
    assert ratio[0] == pytest.approx(math.exp(-0.3))
    assert math.isnan(ratio[1])


def test_a_ring_sends_each_byte_twice() -> None:
    link = laws.Link.parse("2,100")
    assert laws.averaging_seconds(1, 1e9, link) == 0
    assert laws.averaging_seconds(4, 1e9, link) == pytest.approx(2 * 3 * (0.125 + 100e-6))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1.25", "--link 1.25 is not two numbers; give bandwidth and latency as GB/s,µs, such as 1.25,50"),
        ("fast,50", "--link fast,50 is not two numbers"),
        ("0,50", "the bandwidth is 0 GB/s, not 0.000001 to 100,000; give bandwidth and latency as"),
        ("-1,50", "the bandwidth is -1 GB/s"),
        ("1e9,50", r"the bandwidth is 1e\+09 GB/s"),
        ("nan,50", "the bandwidth is nan GB/s"),
        ("1.25,5e-05", r"the latency is 5e-05 µs, not 0.05 to 10,000,000 \(5e-05 s are 50 µs\)"),
        ("1.25,-3", "the latency is -3 µs"),
        ("1.25,inf", "the latency is inf µs"),
    ],
)
def test_a_link_that_makes_no_sense_is_named(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        laws.Link.parse(text)


def test_slopes_are_those_of_all_curves_whatever_their_levels() -> None:
    curves = [[(step, level - 0.25 * math.log(step)) for step in (100, 200, 400)] for level in (3.0, 5.0)]
    found = draws.interval(draws.slope(np.random.default_rng(0), curves))
    assert (found.low, found.value, found.high) == pytest.approx((0.25, 0.25, 0.25))


def test_the_interval_of_a_slope_is_student_s() -> None:
    """Four losses have two degrees of freedom, for which t is 4.30; x = ln(step) is -3, -1, 1, 3 around its mean."""
    errors = np.array([0.1, -0.1, -0.1, 0.1])  # of sum 0, and no slope
    curve = [(round(math.e ** (7 + x)), -0.5 * x + error) for x, error in zip((-3, -1, 1, 3), errors, strict=True)]
    found = draws.interval(draws.slope(np.random.default_rng(0), [curve]))
    standard_error = (errors @ errors / 2 / 20) ** 0.5
    assert found.value == pytest.approx(0.5, rel=0.01)
    assert (found.high - found.low) / 2 == pytest.approx(4.30 * standard_error, rel=0.25)


def test_an_interval_covers_95_percent_of_the_draws() -> None:
    values = np.random.default_rng(0).permutation(np.arange(1.0, 1002.0))
    assert draws.interval(values) == draws.Interval(501, 26, 976)
    assert math.isnan(draws.interval(np.full(4, math.nan)).value)


@pytest.mark.parametrize(
    ("value", "text"), [(1234.5, "1,230"), (0.98765, "0.988"), (3.0, "3"), (math.inf, "infinite"), (math.nan, "-")]
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert draws.short(value) == text
