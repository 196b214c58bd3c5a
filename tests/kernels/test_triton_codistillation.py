"""The Triton kernel, on a GPU if there is one, else in Triton's interpreter with few rows, because it is slow."""

# ruff: noqa: N803 - V and N are the names in the formula

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compile_ahead import TIMEOUT, compiled_ahead
from loss_oracle import (
    Case,
    assert_matches_reference,
    assert_shards_match_reference,
    cases,
    on,
    random_case,
    shard_cuts,
)
from repository import ROOT

if torch.cuda.is_available():
    pytest.importorskip("triton")
else:
    pytest.importorskip("triton", minversion="3.7", reason="older interpreters fail with numpy >= 2.4")

from triton.backends.compiler import GPUTarget

from hpcdistill.kernels import triton_codistillation, triton_row
from hpcdistill.kernels.rows import Rows
from hpcdistill.kernels.triton_codistillation import INTERPRETED, _vectors, launch_options, run, scale_rows_

pytestmark = [pytest.mark.alone, TIMEOUT]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
EVERY_OPTION: dict[str, Any] = {"temperature": 4.0, "label_smoothing": 0.1, "z_loss": 1e-3, "distill_weight": 0.3}


@pytest.fixture(scope="module", autouse=True)
def kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compile the kernels of this module in several processes, on a GPU; they take seconds each."""
    with compiled_ahead(request, [triton_row.kernel, triton_codistillation._scale_kernel]):
        yield


def filled(case: Case, scales: tuple[float, float] = (1.0, 1.0), **changes: Any) -> Rows:
    rows = on(replace(case.rows(scales), **changes), DEVICE)
    run(rows)
    return on(rows, "cpu")


def in_tiles(launch: Any = launch_options) -> Any:
    """Return a patch that makes the kernel read every row in tiles of 64 times 16 bytes."""

    def small_tiles(V: int, tensors: int, weighted: bool, itemsize: int, aligned: bool, target: GPUTarget) -> Any:
        height, width, fold = (64, 16 // itemsize, 1) if aligned else (16 // itemsize, 64, 0)
        tile = {"WHOLE": False, "HEIGHT": height, "WIDTH": width, "FOLD": fold}
        return launch(V, tensors, weighted, itemsize, aligned, target) | tile

    return mock.patch.object(triton_codistillation, "launch_options", small_tiles)


@settings(max_examples=150)
@given(case=cases([1, 2, 3, 127, 1000, 2500], DTYPES, most_rows=2))
def test_losses_and_gradients_match_the_formula(case: Case) -> None:
    assert_matches_reference(case, filled(case))


@settings(max_examples=150)
@given(case=cases([1, 127, 528, 1024, 1500], DTYPES, most_rows=2))
def test_tiles_make_no_difference(case: Case) -> None:
    with in_tiles():
        assert_matches_reference(case, filled(case))


@settings(max_examples=50)
@given(cases([2, 127, 1024], DTYPES, most_rows=2), shard_cuts(), st.booleans())
def test_shards_make_no_difference(case: Case, cuts: list[float], tiled: bool) -> None:
    with in_tiles() if tiled else nullcontext():
        assert_shards_match_reference(case, cuts, run, DEVICE)


@pytest.mark.parametrize("V", [127, 528])  # not aligned, and aligned
@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_gradient_of_float32_logits_may_have_16_bits(V: int, tiled: bool, dtype: torch.dtype) -> None:
    """Check a row that counts, one that does not, and one whose label is out of range."""
    case = random_case(rows=3, V=V, dtype=torch.float32, **EVERY_OPTION)
    case.target[1], case.target[2] = -100, V
    with in_tiles() if tiled else nullcontext():
        wide = filled(case)
        narrow = filled(case, gradient=torch.full((3, V), torch.inf, dtype=dtype))
    assert torch.equal(narrow.losses[:2], wide.losses[:2])
    # The interpreter rounds some numbers to the other neighbour.
    ulp = torch.finfo(dtype).eps
    torch.testing.assert_close(narrow.gradient, wide.gradient.to(dtype), rtol=ulp, atol=0, equal_nan=True)


@pytest.mark.parametrize("V", [20000, 20001])  # aligned or not; the last of three or five tiles is incomplete
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("lse_is_given", [False, True])
def test_a_long_row(V: int, dtype: torch.dtype, lse_is_given: bool) -> None:
    case = random_case(rows=1, V=V, N=3, dtype=dtype, **EVERY_OPTION, lse_is_given=lse_is_given)
    assert not launch_options(V, 4, False, dtype.itemsize, True, INTERPRETED)["WHOLE"]
    assert_matches_reference(case, filled(case))


@pytest.mark.parametrize("maximum", [0, 70, 150, 199])  # in the first, a middle or the last tile
def test_a_maximum_in_any_tile_of_ascending_and_descending_rows(maximum: int) -> None:
    case = random_case(rows=2, V=200, dtype=torch.float32, temperature=2.0)
    for k, logits in enumerate([case.logits, *case.teachers]):
        logits.copy_(torch.linspace(-50, 50, 200) * (-1) ** k)
        logits[:, maximum] = 80.0
    with in_tiles():
        assert_matches_reference(case, filled(case))


@pytest.mark.parametrize("V", [11, 300])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tiled", [False, True])
def test_the_gradient_may_overwrite_the_logits(V: int, dtype: torch.dtype, tiled: bool) -> None:
    case = random_case(rows=3, V=V, dtype=dtype, **EVERY_OPTION)
    case.target[1] = -100
    logits = case.logits.clone()
    with in_tiles() if tiled else nullcontext():
        rows = filled(case, logits=logits, gradient=logits)
    assert_matches_reference(case, rows)


@pytest.mark.parametrize("options", [{}, EVERY_OPTION, {"label_smoothing": 0.1, "teachers": []}, {"teachers": []}])
@pytest.mark.parametrize("tiled", [False, True])
def test_the_losses_are_the_same_without_a_gradient(options: dict[str, Any], tiled: bool) -> None:
    case = random_case(rows=3, V=300, dtype=torch.float32, **options)
    with in_tiles() if tiled else nullcontext():
        whole, forward = filled(case), filled(case, gradient=None)
    assert torch.equal(whole.losses, forward.losses)
    assert torch.equal(whole.parts, forward.parts)


@pytest.mark.parametrize("label", [-1, 11, 2**40, -(2**62)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_label_out_of_range_makes_its_row_nan(label: int, dtype: torch.dtype) -> None:
    case = random_case(dtype=dtype, class_weight=torch.rand(11) + 0.1)
    right = filled(case)
    target = case.target.clone()
    target[2] = label
    wrong = filled(case, target=target)
    others = [0, 1, 3]
    assert wrong.gradient is not None
    assert right.gradient is not None
    assert wrong.losses[2].isnan()
    assert wrong.gradient[2].isnan().all()
    assert torch.equal(wrong.losses[others], right.losses[others])
    assert torch.equal(wrong.gradient[others], right.gradient[others])
    assert torch.equal(wrong.parts[:, others], right.parts[:, others])


@pytest.mark.parametrize("tiled", [False, True])
def test_ignored_rows_are_not_read(tiled: bool) -> None:
    case = random_case(rows=3, V=300, dtype=torch.float32, **EVERY_OPTION)
    case.target[:2] = -100
    spoilt = replace(case, logits=case.logits.clone(), teachers=[teacher.clone() for teacher in case.teachers])
    for logits in (spoilt.logits, *spoilt.teachers):
        logits[:2] = torch.nan
    with in_tiles() if tiled else nullcontext():
        assert_matches_reference(case, filled(case, logits=spoilt.logits, teachers=spoilt.teachers))


@pytest.mark.parametrize("options", [{}, EVERY_OPTION | {"label_smoothing": 0.0}])
@pytest.mark.parametrize("tiled", [False, True])
def test_classes_that_are_ruled_out(options: dict[str, Any], tiled: bool) -> None:
    case = random_case(rows=2, V=300, dtype=torch.float32, **options)
    case.target.fill_(7)
    case.logits[:, 100:240] = -torch.inf  # some lanes of a tile have no finite logit
    for teacher in case.teachers:
        teacher[:, 90:260] = -torch.inf
    with in_tiles() if tiled else nullcontext():
        assert_matches_reference(case, filled(case))


def test_a_label_of_weight_zero_adds_nothing_even_if_it_is_ruled_out() -> None:
    class_weight = torch.ones(11)
    class_weight[5] = 0
    case = random_case(dtype=torch.float32, class_weight=class_weight, label_smoothing=0.1)
    case.target.fill_(5)
    for logits in (case.logits, *case.teachers):
        logits[:, 5] = -torch.inf
    assert_matches_reference(case, filled(case))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_logits_do_not_lose_the_sum(dtype: torch.dtype) -> None:
    """Check that only the logits are rounded: at 1e4 a rounded logsumexp would be an error of 1e-3."""
    case = random_case(rows=3, V=300, dtype=dtype)
    near = replace(case, logits=case.logits.round(), teachers=[teacher.round() for teacher in case.teachers])
    far = replace(near, logits=near.logits + 1e4, teachers=[teacher - 1e4 for teacher in near.teachers])
    a, b = filled(near), filled(far)
    tolerance = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(b.losses, a.losses, rtol=0, atol=10 * tolerance)
    torch.testing.assert_close(b.gradient, a.gradient, rtol=0, atol=tolerance)


@settings(max_examples=10)
@given(case=cases([3, 40], [torch.float32, torch.float64], most_rows=3), scales=st.sampled_from([(0.25, 2.0), (0, 1)]))
def test_scales(case: Case, scales: tuple[float, float]) -> None:
    rows = filled(case, scales)
    plain = filled(case)
    cross_entropy, divergence, lse = plain.parts
    others = case.distill_weight * case.temperature**2 * divergence + case.z_loss * lse**2
    torch.testing.assert_close(rows.parts, plain.parts, rtol=0, atol=0)
    torch.testing.assert_close(rows.losses, scales[0] * cross_entropy + scales[1] * others, rtol=1e-5, atol=1e-6)
    only = [filled(case, pair).gradient for pair in ((1.0, 0.0), (0.0, 1.0))]
    assert rows.gradient is not None
    for gradient in only:
        assert gradient is not None
    expected = sum(scale * gradient.double() for scale, gradient in zip(scales, only, strict=True))
    assert isinstance(expected, torch.Tensor)
    loss_tolerance = case.tolerances()[1]
    torch.testing.assert_close(rows.gradient.double(), expected, rtol=1e-6, atol=loss_tolerance)


@pytest.mark.parametrize("V", [11, 16])
def test_every_tensor_has_its_own_stride(V: int) -> None:
    case = random_case(rows=3, V=V, N=2, dtype=torch.bfloat16)
    strided = [torch.empty(3, V + 8 * k, dtype=torch.bfloat16)[:, :V] for k in range(1, 5)]
    for wide, tensor in zip(strided, [case.logits, *case.teachers], strict=False):
        wide.copy_(tensor)
    logits, *teachers, gradient = strided
    rows = filled(case, logits=logits, teachers=teachers, gradient=gradient.fill_(torch.nan))
    assert_matches_reference(case, rows)


def test_no_rows() -> None:
    case = random_case(rows=0)
    assert_matches_reference(case, filled(case))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("V", [3, 29, 300])
@pytest.mark.parametrize("first", [0, 1, 7])
@pytest.mark.parametrize("tiled", [False, True])
def test_rows_that_begin_between_two_vectors(dtype: torch.dtype, V: int, first: int, tiled: bool) -> None:
    """All matrices have the same strides, so that each row has one place where its vectors begin."""
    case = random_case(rows=3, V=V, dtype=dtype, **EVERY_OPTION, class_weight=torch.rand(V) + 0.1)
    case.target[0], case.target[1] = 0, V - 1
    stride = V + 1 if V % 2 else V + 3

    def placed(x: torch.Tensor) -> torch.Tensor:
        return (
            torch.full((first + 3 * stride,), torch.nan, dtype=dtype).as_strided(x.shape, (stride, 1), first).copy_(x)
        )

    logits, *teachers, gradient = map(placed, [case.logits, *case.teachers, case.logits])
    assert _vectors([logits, *teachers, gradient], 16 // dtype.itemsize)[1:] == (True, True)
    around = gradient.as_strided((2, stride - V), (stride, 1), first + V)
    with in_tiles() if tiled else nullcontext():
        assert_matches_reference(case, filled(case, logits=logits, teachers=teachers, gradient=gradient))
    assert around.isnan().all()


def test_rows_without_common_vectors() -> None:
    x = torch.zeros(2, 64)
    assert _vectors([x, x], 4) == (0, True, False)
    assert _vectors([x, torch.zeros(2, 65)[:, :64]], 4)[1:] == (False, False)
    assert _vectors([x, torch.zeros(2, 68)[:, 1:65]], 4)[1:] == (False, False)
    assert _vectors([x, torch.zeros(2, 64, dtype=torch.bfloat16)], 4) == (0, True, False)


def test_launches_are_on_the_gpu_of_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton launches on the current GPU, which may be another one."""

    class OnSecondGPU(torch.Tensor):
        device = torch.device("cuda", 1)

    current = []

    @contextmanager
    def device(asked: torch.device) -> Iterator[None]:
        current.append(asked)
        yield
        current.pop()

    class Kernel:
        arg_names: tuple[str, ...] = ()
        launches = 0

        def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
            assert current == [torch.device("cuda", 1)]
            Kernel.launches += 1
            return lambda *arguments, **constants: None

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(triton_codistillation, "kernel", Kernel())
    monkeypatch.setattr(triton_codistillation, "_scale_kernel", Kernel())
    rows = random_case(dtype=torch.float32).rows()
    run(replace(rows, logits=rows.logits.as_subclass(OnSecondGPU)))
    scale_rows_(rows.gradient.as_subclass(OnSecondGPU), torch.ones(4))
    assert (Kernel.launches, current) == (2, [])


def test_rows_beyond_32_bits() -> None:
    """The third row begins 2**31 columns after the first: 4 GiB of addresses, of which little is used."""
    stride = 1 << 30
    case = random_case(rows=3, V=11, N=1, dtype=torch.bfloat16)
    space = torch.empty(2 * stride + 64, dtype=torch.bfloat16)
    logits, teacher, gradient = (space.as_strided((3, 11), (stride, 1), start) for start in (0, 16, 32))
    logits.copy_(case.logits)
    teacher.copy_(case.teachers[0])
    assert_matches_reference(case, filled(case, logits=logits, teachers=[teacher], gradient=gradient.fill_(torch.nan)))


def test_scaling_rows_beyond_32_bits() -> None:
    stride = 1 << 30
    gradient = torch.empty(2 * stride + 64, dtype=torch.bfloat16, device=DEVICE).as_strided((3, 11), (stride, 1))
    gradient.fill_(3.0)
    scale_rows_(gradient, torch.tensor([1.0, 1.0, 2.0], device=DEVICE))
    assert gradient[:, 0].tolist() == [3.0, 3.0, 6.0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("V", [1, 11, 5000])
def test_scale_rows(dtype: torch.dtype, V: int) -> None:
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(4, V + 3, generator=generator).to(DEVICE, dtype)[:, :V]
    real = torch.float64 if dtype == torch.float64 else torch.float32
    factors = torch.tensor([1.0, 9.0, 0.5, 9.0, 0.0, 9.0, -4.0, 9.0], dtype=real, device=DEVICE)[::2]
    expected = (gradient.to(real) * factors.unsqueeze(-1)).to(dtype)
    padding = gradient.as_strided((4, 3), (V + 3, 1), V).clone()
    scale_rows_(gradient, factors)
    assert torch.equal(gradient, expected)
    assert torch.equal(gradient.as_strided((4, 3), (V + 3, 1), V), padding)
    scale_rows_(gradient, torch.tensor(2.0, dtype=real, device=DEVICE).expand(4))
    assert torch.equal(gradient, 2 * expected)


def test_scale_rows_by_one_writes_nothing() -> None:
    """A signalling NaN remains; any arithmetic would make it a quiet NaN."""
    rows = torch.empty(3, 7, device=DEVICE)
    bits = rows.view(torch.int32).fill_(0x7FA00000).clone()
    scale_rows_(rows, torch.ones(1, device=DEVICE).expand(3))
    assert torch.equal(rows.view(torch.int32), bits)


@pytest.mark.launch  # a separate process: in this one Triton may interpret
@pytest.mark.parametrize("script", ["triton_launches", "triton_counts"])
def test_without_the_interpreter(script: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(str(ROOT / path) for path in (".", "tests/support", "tools"))
    command = [sys.executable, str(ROOT / f"tests/kernels/{script}.py")]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
    assert result.returncode == 0, result.stderr
