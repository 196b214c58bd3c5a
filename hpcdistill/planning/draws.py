"""Uncertain numbers as arrays of draws, so that whatever is computed from them has an interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Draws: TypeAlias = NDArray[np.float64]
"""Draws of an uncertain number, [DRAWS]; element i of all numbers of a plan belongs together."""

DRAWS = 4000

Curve: TypeAlias = Sequence[tuple[int, float]]
"""Losses of one group by step: (step, loss in nats)."""


@dataclass(frozen=True)
class Interval:
    """Median and 95 % interval of an uncertain number."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        value, low, high = map(short, (self.value, self.low, self.high))
        return value if low == high else f"{value} ({low} to {high})"


def short(value: float) -> str:
    """Format a number with three significant digits, without an exponent where it has fewer than ten digits."""
    if not math.isfinite(value):
        return "-" if math.isnan(value) else "infinite"
    return f"{value:.2e}" if abs(value) >= 1e9 else f"{float(f'{value:.3g}'):,.15g}"


def interval(draws: Draws) -> Interval:
    """Return the median of draws and their central 95 %; NaN if half of the draws or more are not numbers."""
    if np.isnan(draws).mean() >= 0.5:
        return Interval(math.nan, math.nan, math.nan)
    low, value, high = np.nanquantile(draws, [0.025, 0.5, 0.975], method="nearest")
    return Interval(float(value), float(low), float(high))


def probability(condition: NDArray[np.bool_]) -> float:
    """Return the share of draws for which a condition holds."""
    return float(condition.mean())


def constant(value: float) -> Draws:
    """Return the draws of a number that is known."""
    return np.full(DRAWS, value)


def mean(rng: np.random.Generator, values: Sequence[float]) -> Draws:
    """Return draws of the mean of the distribution that `values`, one or more, are from, by Student's t."""
    count = len(values)
    if count < 2:
        return constant(values[0])
    found: Draws = np.mean(values) + np.std(values, ddof=1) / count**0.5 * rng.standard_t(count - 1, DRAWS)
    return found


def pair_means(rng: np.random.Generator, pairs: Sequence[tuple[float, float]]) -> tuple[Draws, Draws]:
    """Return draws of the means of the first and of the second of each pair, two or more, by Student's t.

    Their errors are correlated as the pairs are.
    """
    values = np.asarray(pairs, dtype=np.float64)
    count = len(values)
    _, scales, axes = np.linalg.svd(values - values.mean(0), full_matrices=False)
    errors = rng.standard_normal((DRAWS, 2)) * scales @ axes  # of the covariance of the deviations, times count - 1
    first, second = (values.mean(0) + errors / (count * rng.chisquare(count - 1, (DRAWS, 1))) ** 0.5).T
    return first, second


def slope(rng: np.random.Generator, curves: Sequence[Curve]) -> Draws:
    """Return draws of λ in L(step) = a − λ ln(step), by least squares with Student's t.

    Args:
        rng: source of the draws.
        curves: losses of each group; λ is that of all, a is each group's own. All groups together have at least two
            losses more than there are groups.
    """
    x = np.concatenate([_centered([np.log(step) for step, _ in curve]) for curve in curves])
    y = np.concatenate([_centered([loss for _, loss in curve]) for curve in curves])
    freedom = len(x) - len(curves) - 1
    square = float(x @ x)
    found = -float(x @ y) / square
    residuals = y + found * x
    error = (float(residuals @ residuals) / freedom / square) ** 0.5
    drawn: Draws = found + error * rng.standard_t(freedom, DRAWS)
    return drawn


def _centered(values: Sequence[float]) -> Draws:
    array: Draws = np.asarray(values, dtype=np.float64)
    centered: Draws = array - array.mean()
    return centered
