"""Precision: autocast, weights in bfloat16, and TF32."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from hpcdistill.training.precision import allow_tf32, autocast, to_bfloat16

pytestmark = pytest.mark.alone


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("float32", torch.float32), ("bf16", torch.bfloat16), ("bf16-weights", torch.bfloat16)],
)
def test_models_compute_under_autocast(precision: str, dtype: torch.dtype) -> None:
    model = nn.Linear(2, 2)
    if precision == "bf16-weights":
        to_bfloat16(model)
    with autocast(precision, torch.device("cpu")):
        assert model(torch.ones(2)).dtype == dtype


def test_constants_keep_their_precision() -> None:
    """Check a buffer outside of checkpoints, which two inner modules share."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    frequencies = torch.rand(3)
    for module in model:
        module.register_buffer("frequencies", frequencies, persistent=False)
    to_bfloat16(model)
    assert all(module.frequencies is frequencies for module in model)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.bfloat16, torch.int64}


@pytest.fixture
def default_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("default_precision")
def test_tf32_is_for_matrix_products_of_gpus() -> None:
    one, other = torch.rand(64, 64), torch.rand(64, 64)
    exact = one @ other
    allow_tf32()
    assert torch.backends.cuda.matmul.allow_tf32
    assert torch.equal(one @ other, exact)
