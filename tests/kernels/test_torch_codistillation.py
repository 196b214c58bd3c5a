"""The reference in torch, against the float64 formula."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given

from hpcdistill.kernels.torch_codistillation import run
from loss_oracle import Case, assert_matches_reference, assert_shards_match_reference, cases, random_case, shard_cuts

pytestmark = pytest.mark.alone

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@given(cases([1, 2, 3, 127, 1000], DTYPES))
def test_outputs_match_the_formula(case: Case) -> None:
    rows = case.rows()
    run(rows)
    assert_matches_reference(case, rows)


@given(cases([2, 3, 127, 1000], DTYPES), shard_cuts())
def test_shards_make_no_difference(case: Case, cuts: list[float]) -> None:
    assert_shards_match_reference(case, cuts, run)


def test_a_label_out_of_range_makes_its_row_nan() -> None:
    """On a GPU labels are not checked before."""
    case = random_case(rows=4)
    case.target[0], case.target[2] = 11, -1
    rows = case.rows()
    run(rows)
    assert rows.losses.isnan().tolist() == [True, False, True, False]
    assert rows.gradient.isnan().all(1).tolist() == [True, False, True, False]


def test_the_gradient_of_float32_logits_may_have_16_bits() -> None:
    case = random_case(rows=4, dtype=torch.float32)
    case.target[1] = -100
    wide = case.rows()
    narrow = replace(wide, gradient=torch.full_like(wide.gradient, torch.nan, dtype=torch.bfloat16))
    for rows in (wide, narrow):
        run(rows)
    assert torch.equal(narrow.gradient, wide.gradient.bfloat16())


def test_the_gradient_may_overwrite_the_logits() -> None:
    case = random_case()
    apart = case.rows()
    run(apart)
    in_place = replace(apart, gradient=case.logits)
    run(in_place)
    assert torch.equal(in_place.gradient, apart.gradient)
