"""Flat layout: for any model and any number of shards, the same bytes come back in the same place."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hpcdistill.exchange.layout import ALIGNMENT, Layout

pytestmark = pytest.mark.alone

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool)

tensors = st.lists(
    st.tuples(st.lists(st.integers(0, 9), max_size=3), st.sampled_from(DTYPES), st.booleans()), min_size=1, max_size=8
)


def make_model(specification: list[tuple[list[int], torch.dtype, bool]], seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Module()
    for number, (shape, dtype, trainable) in enumerate(specification):
        values = torch.randint(0, 2 if dtype == torch.bool else 100, shape, generator=generator).to(dtype)
        if trainable and dtype.is_floating_point:
            model.register_parameter(f"t{number}", nn.Parameter(values))
        else:
            model.register_buffer(f"t{number}", values)
    return model


@given(tensors, st.integers(1, 7))
def test_shards_hold_each_element_once_and_equal_shares(
    specification: list[tuple[list[int], torch.dtype, bool]], size: int
) -> None:
    model = make_model(specification, seed=1)
    layout = Layout.of(model)
    counts = [torch.zeros(tensor.shape, dtype=torch.int64) for tensor in layout.tensors(model)]
    for rank in range(size):
        shard = layout.shard(rank, size)
        for piece in shard:
            piece.of(counts).add_(1)
        assert sum(piece.numel * piece.entry.dtype.itemsize for piece in shard) <= layout.nbytes / size + ALIGNMENT
    assert all((count == 1).all() for count in counts)


def test_equal_models_have_equal_signatures_and_others_name_the_difference() -> None:
    first, second = Layout.of(nn.Linear(3, 4)), Layout.of(nn.Linear(3, 5))
    assert first.signature == Layout.of(nn.Linear(3, 4)).signature
    assert first.difference(Layout.of(nn.Linear(3, 4))) == ""
    assert first.signature != second.signature
    assert first.difference(second) == "weight [4, 3] float32 against weight [5, 3] float32"
    assert Layout.of(nn.Linear(3, 4, bias=False)).difference(first) == "1 tensors against 2"


def test_tied_parameters_travel_once_and_batch_norm_statistics_travel() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4))
    model[1].weight = model[0].weight
    names = [entry.name for entry in Layout.of(model).entries]
    assert names == ["0.weight", "2.weight", "2.bias", "2.running_mean", "2.running_var", "2.num_batches_tracked"]


def test_a_tensor_that_is_not_contiguous_is_refused_by_name() -> None:
    model = nn.Linear(3, 4)
    model.weight = nn.Parameter(torch.zeros(3, 4).t())
    with pytest.raises(ValueError, match="weight is not contiguous"):
        Layout.of(model)
