"""The compiled CPU kernel, with every instruction set that this machine has."""

# ruff: noqa: N803, N806 - V and N are the names in the formula

from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpcdistill.kernels import cpu_codistillation
from hpcdistill.kernels.cpu_codistillation import run
from loss_oracle import Case, assert_matches_reference, assert_shards_match_reference, cases, random_case, shard_cuts

pytestmark = pytest.mark.alone

ALL = ["avx512_bf16", "avx512", "avx2", "baseline"]
BEST = cpu_codistillation.instruction_set()
HERE = ALL[ALL.index(BEST) :] if BEST != "baseline" else ["baseline"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def check(case: Case, instructions: str | None = None) -> None:
    rows = case.rows()
    run(rows, instructions)
    assert_matches_reference(case, rows)


@given(cases([1, 2, 3, 31, 127, 1000], DTYPES), st.sampled_from(HERE))
def test_outputs_match_the_formula(case: Case, instructions: str) -> None:
    check(case, instructions)


@given(cases([2, 3, 127, 1000], DTYPES), shard_cuts(), st.sampled_from(HERE))
def test_shards_make_no_difference(case: Case, cuts: list[float], instructions: str) -> None:
    assert_shards_match_reference(case, cuts, partial(run, instructions=instructions))


@pytest.mark.parametrize("instructions", HERE)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("V", [32000, 50257, 128256])
def test_large_vocabularies(V: int, dtype: torch.dtype, instructions: str) -> None:
    check(random_case(rows=2, V=V, N=3, dtype=dtype, temperature=2.0), instructions)
    check(random_case(rows=2, V=V, N=1, dtype=dtype), instructions)


def test_an_unknown_instruction_set() -> None:
    with pytest.raises(
        ValueError, match=f"instructions is 'mmx', which this machine lacks; pass None or its best, '{BEST}'"
    ):
        run(random_case().rows(), "mmx")


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_whose_maximum_is_far_above_its_first_columns(dtype: torch.dtype) -> None:
    """The offset of the exponentials is estimated from the first columns."""
    for low in (-torch.inf, -1e4):
        case = random_case(rows=2, V=1000, N=2, dtype=dtype)
        for x in (case.logits, *case.teachers):
            x[:, :500] = low
            x[:, 500:] += 300
        case.target.fill_(700)
        check(case)


@pytest.mark.parametrize("instructions", HERE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_numbers_are_read_and_rounded_as_in_torch(dtype: torch.dtype, instructions: str) -> None:
    """Every finite number is a logit, beside a class whose logit is 0."""
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    x = x[x.abs() < 1e8]
    rows = Case(torch.stack([x, x * 0], 1), torch.ones(len(x), dtype=torch.int64), []).rows()
    run(rows, instructions)
    x = x.double()
    torch.testing.assert_close(rows.parts[2].double(), torch.logaddexp(x, x * 0), rtol=3e-7, atol=3e-6)
    # Rounded once, from a quotient of exponentials with an error of 3e-6; subnormal float32 numbers may be 0.
    expected = x.sigmoid()
    unit = expected.clamp(min=torch.finfo(dtype).tiny).log2().floor().exp2() * torch.finfo(dtype).eps
    error = (rows.gradient[:, 0].double() - expected).abs()
    assert (error <= unit / 2 + 6e-6 * expected + torch.finfo(torch.float32).tiny).all()


def test_the_gradient_may_overwrite_the_logits() -> None:
    case = random_case(rows=5, V=333, N=3, dtype=torch.float32, temperature=2.0, label_smoothing=0.1)
    apart = case.rows()
    run(apart)
    in_place = replace(apart, logits=case.logits.clone())
    in_place = replace(in_place, gradient=in_place.logits)
    run(in_place)
    assert torch.equal(in_place.gradient, apart.gradient)


def test_the_losses_are_the_same_without_a_gradient() -> None:
    for N in (0, 1, 3):
        case = random_case(rows=5, V=333, N=N, dtype=torch.float32)
        whole, forward = case.rows(), replace(case.rows(), gradient=None)
        run(whole)
        run(forward)
        assert torch.equal(whole.losses, forward.losses)
        assert torch.equal(whole.parts, forward.parts)


def test_gradients_large_enough_for_streaming_stores() -> None:
    """Rows begin and end in the middle of a vector."""
    case = random_case(rows=900, V=5003, N=1, dtype=torch.float32)
    rows = case.rows()
    run(rows)
    small = replace(case, logits=case.logits[:9], target=case.target[:9], teachers=[case.teachers[0][:9]]).rows()
    run(small)
    assert torch.equal(rows.gradient[:9], small.gradient)
    assert rows.gradient.isfinite().all()


def test_nan_stays_in_its_row() -> None:
    for dtype in DTYPES:
        for N in (0, 1, 2):
            case = random_case(rows=3, V=100, N=N, dtype=dtype)
            (case.teachers[0] if N else case.logits)[1, 40] = torch.nan
            rows = case.rows()
            run(rows)
            assert rows.losses.isnan().tolist() == [False, True, False]
            assert rows.gradient.isnan().all(1).tolist() == [False, True, False]
            assert rows.gradient[::2].isfinite().all()


def test_scales() -> None:
    case = random_case(rows=5, V=50, N=2, temperature=2.0, z_loss=0.1)
    plain, scaled, cross_entropy = case.rows(), case.rows((0.25, 0.25)), case.rows((1.0, 0.0))
    for rows in (plain, scaled, cross_entropy):
        run(rows)
    torch.testing.assert_close(scaled.losses, plain.losses / 4)
    torch.testing.assert_close(scaled.gradient, plain.gradient / 4)
    assert torch.equal(scaled.parts, plain.parts)
    torch.testing.assert_close(cross_entropy.losses, plain.parts[0])


def test_the_number_of_threads_does_not_change_the_result() -> None:
    case = random_case(rows=50, V=3000, N=2, dtype=torch.bfloat16)
    one, three = case.rows(), case.rows()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        run(one)
        torch.set_num_threads(3)
        run(three)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one.losses, three.losses)
    assert torch.equal(one.gradient, three.gradient)
