"""Parameters arrive to within the error that the codec's docstring states; buffers arrive exactly."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from hpcdistill.errors import UserError
from hpcdistill.exchange.codec import BLOCK, CHUNK, CODECS, Packing, require_codec
from hpcdistill.exchange.layout import Layout

pytestmark = pytest.mark.alone

# Sizes around the ends of a block, of a chunk and of a shard.
SIZES = st.lists(st.sampled_from([0, 1, 7, BLOCK - 1, BLOCK, BLOCK + 1, CHUNK * BLOCK - 300]), min_size=1, max_size=4)
MAGNITUDES = st.floats(-38, 38)  # powers of ten
TINY = torch.finfo(torch.float32).tiny


def model_of(sizes: list[int], dtype: torch.dtype, magnitude: float, seed: int = 0) -> nn.Module:
    """Make a model of parameters around 10**magnitude, within the dtype's range, each with two buffers."""
    generator = torch.Generator().manual_seed(seed)
    limit = torch.finfo(dtype).max / 8
    model = nn.Module()
    for number, size in enumerate(sizes):
        values = torch.randn(size, generator=generator, dtype=torch.float64) * 10**magnitude
        model.register_parameter(f"weight{number}", nn.Parameter(values.clamp(-limit, limit).to(dtype)))
        model.register_buffer(f"mean{number}", torch.randn(size, generator=generator).to(dtype))
        model.register_buffer(f"count{number}", torch.randint(-(2**60), 2**60, (size,), generator=generator))
    return model


def sent(model: nn.Module, codec: str, ranks: int) -> dict[str, torch.Tensor]:
    """Return the state of a replica, which held noise, after `model` was encoded and decoded into it."""
    layout = Layout.of(model)
    replica = model_of([tensor.numel() for tensor in model.parameters()], next(model.parameters()).dtype, 0, seed=1)
    for rank in range(ranks):
        packing = Packing(layout, codec, rank, ranks)
        wire = torch.full((packing.nbytes,), 255, dtype=torch.uint8)
        packing.encode(layout.tensors(model), wire)
        packing.decode(wire, layout.tensors(replica))
    return replica.state_dict()


@given(SIZES, st.sampled_from(CODECS["fp32"]), MAGNITUDES, st.integers(1, 5))
@example([BLOCK + 1], torch.float32, -38, 2)
@pytest.mark.parametrize("codec", CODECS)
def test_errors_are_bounded_and_buffers_exact(
    codec: str, sizes: list[int], dtype: torch.dtype, magnitude: float, ranks: int
) -> None:
    if dtype not in CODECS[codec]:
        return
    model = model_of(sizes, dtype, magnitude)
    received = sent(model, codec, ranks)
    for name, exact in model.named_buffers():
        assert torch.equal(received[name], exact), name
    for name, exact in model.named_parameters():
        error = (received[name].double() - exact.double()).abs()
        magnitudes = exact.detach().double().abs()
        if codec == "int8":
            # Blocks begin anew in each shard, so the bound is that of the whole parameter.
            largest = magnitudes.max() if magnitudes.numel() else torch.tensor(0.0)
            bound = largest / 254 + TINY
        else:
            bound = magnitudes * {"fp32": 2.0**-24, "bf16": 2.0**-8}[codec] + TINY
        # One more rounding, to the dtype of the parameter, ends the decoding.
        assert (error <= bound * 1.001 + magnitudes * torch.finfo(dtype).eps).all(), (name, error.max())


def test_a_block_of_int8_is_coarsened_by_its_own_outlier_only() -> None:
    model = model_of([2 * BLOCK], torch.float32, 0)
    with torch.no_grad():
        model.weight0[0] = 1e6
    error = (sent(model, "int8", 1)["weight0"] - model.weight0).abs()
    assert error[:BLOCK].max() > 1
    assert error[BLOCK:].max() < model.weight0[BLOCK:].abs().max() / 250


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_stay_non_finite(codec: str, value: float) -> None:
    model = model_of([3 * BLOCK], torch.float32, 0)
    with torch.no_grad():
        model.weight0[BLOCK + 5] = value
    finite = sent(model, codec, 1)["weight0"].isfinite().view(3, BLOCK).all(dim=1)
    assert finite.tolist() == [True, False, True]


def test_bytes_on_the_wire() -> None:
    model = nn.Sequential(nn.Linear(256, 256, bias=False), nn.BatchNorm1d(256, affine=False))
    statistics = 2 * 256 * 4 + 64  # running mean, running variance, and one counter of 8 bytes, aligned
    weights = {"fp32": 4 * 2**16, "bf16": 2 * 2**16, "int8": 2**16 + 4 * 256}
    for codec, nbytes in weights.items():
        assert Packing(Layout.of(model), codec, 0, 1).nbytes == nbytes + statistics


def test_a_codec_that_cannot_carry_a_parameter_is_refused_by_name() -> None:
    half = Layout.of(nn.Linear(3, 4).half())
    with pytest.raises(UserError, match=r"= bf16 does not carry .* weight \[4, 3\] float16; .* fp32 or int8"):
        require_codec("bf16", half)
    require_codec("int8", half)
    eighth = Layout.of(nn.Linear(3, 4).to(torch.float8_e5m2))
    with pytest.raises(UserError, match="float8_e5m2; convert it to float32"):
        require_codec("fp32", eighth)
