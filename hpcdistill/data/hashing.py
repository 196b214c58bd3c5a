"""Numbers that look random and are the same everywhere."""

from __future__ import annotations

from typing import Any

import numpy as np

VALIDATION_SHARE = 0.05


def mix(numbers: Any) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Integers to evenly spread uint64s, one to one: the step of SplitMix64 (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        z = np.asarray(numbers).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        result: np.ndarray[Any, np.dtype[np.uint64]] = z ^ (z >> np.uint64(31))
        return result


def in_validation(numbers: Any) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which rows, given by their numbers in the input, belong to the validation part: about 5 %, spread evenly.

    A row's part does not depend on the other rows, so it can be told before the input has ended.
    """
    result: np.ndarray[Any, np.dtype[np.bool_]] = mix(numbers) < np.uint64(int(VALIDATION_SHARE * 2**64))
    return result
