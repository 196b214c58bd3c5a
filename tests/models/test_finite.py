"""The search for values that are not finite."""

import math

import pytest
import torch

from hpcdistill.models.finite import first_not_finite
from synchronizations import recorded_synchronizations

pytestmark = pytest.mark.alone

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64]


def tensors() -> dict[str, torch.Tensor]:
    """Return finite tensors of all dtypes, with the largest and smallest numbers of each, and empty ones."""
    floats = {
        str(dtype): torch.tensor([torch.finfo(dtype).max, torch.finfo(dtype).min, 0.0], dtype=dtype) for dtype in DTYPES
    }
    others = {"count": torch.tensor(2**62), "flags": torch.tensor([True, False]), "empty": torch.zeros(0, 3)}
    return {**others, **floats}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_first_tensor_that_is_not_finite_is_named(dtype: torch.dtype, value: float) -> None:
    state = tensors()
    assert first_not_finite(state) is None
    state[str(dtype)][1] = value
    assert first_not_finite(state) == str(dtype)
    state["count"] = torch.full((2, 5000), 0.5)
    state["count"][1, 4321] = value
    assert first_not_finite(state) == "count"


def test_many_parameters_that_are_finite_are_read_once() -> None:
    """Check it, as each reading waits until a GPU has done its work so far."""
    state = {**tensors(), **{str(i): torch.randn(i, 3).requires_grad_() for i in range(50)}}
    with recorded_synchronizations() as found:
        assert first_not_finite(state) is None
    assert found == ["local_scalar_dense"]


def test_a_model_without_numbers_is_finite() -> None:
    assert first_not_finite({}) is None
    assert first_not_finite({"empty": torch.zeros(0)}) is None
