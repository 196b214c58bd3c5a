"""The CUDA kernel on a GPU with clusters, and its compilation without spilled registers on any machine with nvcc.

To check its memory accesses (also with --tool racecheck, initcheck, synccheck):
    compute-sanitizer --tool memcheck python -m pytest tests/kernels/test_cuda_codistillation.py -m "not launch"
"""

# ruff: noqa: N803, N806 - V and N are the names in the formula

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from torch import Tensor

from hpcdistill.kernels import cuda_codistillation
from hpcdistill.kernels.rows import Rows
from loss_oracle import Case, assert_matches_reference, cases, random_case

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
DEVICE = "cuda"


def what_is_missing() -> str:
    if not torch.cuda.is_available():
        return "GPU: none here"
    if torch.cuda.get_device_capability() < (9, 0):
        return "GPU: it has no thread-block clusters"
    try:
        cuda_codistillation.library()
    except ImportError as error:
        return str(error)
    return ""


gpu = pytest.mark.skipif(bool(what_is_missing()), reason=what_is_missing())


def moved(tensor: Tensor) -> Tensor:
    """Return `tensor` on the GPU, with the same strides."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=DEVICE).copy_(tensor)


def rows_of(case: Case, **changes: Any) -> Rows:
    moving = replace(
        case,
        logits=moved(case.logits),
        target=moved(case.target),
        teachers=[moved(teacher) for teacher in case.teachers],
        class_weight=None if case.class_weight is None else moved(case.class_weight),
    )
    return replace(moving.rows(), **changes)


def computed(rows: Rows) -> Rows:
    """Run the kernel; return `rows` with its outputs on the CPU."""
    cuda_codistillation.run(rows)
    gradient = None if rows.gradient is None else rows.gradient.cpu()
    return replace(rows, losses=rows.losses.cpu(), parts=rows.parts.cpu(), gradient=gradient)


def assert_same(left: Rows, right: Rows) -> None:
    """Check that the outputs are equal bit for bit."""
    assert torch.equal(left.losses, right.losses)
    assert torch.equal(left.parts, right.parts)
    assert left.gradient is not None
    assert right.gradient is not None
    assert torch.equal(left.gradient, right.gradient)


@gpu
@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(case=cases([1, 2, 3, 127, 1000, 32000, 50257, 128256], DTYPES))
def test_loss_and_gradient_match_the_formula(case: Case) -> None:
    V = case.logits.shape[1]
    assume((1 + len(case.teachers)) * V * case.logits.element_size() < 3e6)  # else no cluster can hold a row
    assert_matches_reference(case, computed(rows_of(case)))


@gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("V", [1000, 50257])
def test_the_gradient_may_overwrite_the_logits(V: int, dtype: torch.dtype) -> None:
    case = random_case(V=V, dtype=dtype, temperature=2.0)
    rows = rows_of(case)
    assert_same(computed(replace(rows, gradient=rows.logits)), computed(rows_of(case)))


@gpu
def test_the_losses_are_the_same_without_a_gradient() -> None:
    case = random_case(V=50257, dtype=torch.bfloat16, z_loss=1e-4)
    losses = computed(rows_of(case, gradient=None))
    assert torch.equal(losses.losses, computed(rows_of(case)).losses)


@gpu
def test_a_label_out_of_range_makes_its_row_nan() -> None:
    V = 50257
    case = random_case(rows=5, V=V, dtype=torch.bfloat16, class_weight=torch.ones(V))
    good = computed(rows_of(case))
    target = case.target.clone()
    target[torch.tensor([0, 2, 3])] = torch.tensor([V, -1, 2**40])
    bad = computed(rows_of(case, target=moved(target)))
    assert bad.gradient is not None
    assert good.gradient is not None
    assert bad.losses.isnan().tolist() == [True, False, True, True, False]
    assert bad.gradient.isnan().all(1).tolist() == [True, False, True, True, False]
    assert torch.equal(bad.losses[[1, 4]], good.losses[[1, 4]])
    assert torch.equal(bad.gradient[[1, 4]], good.gradient[[1, 4]])


@gpu
@pytest.mark.parametrize("V", [11, 50257])
def test_ignored_rows_are_not_read(V: int) -> None:
    case = random_case(V=V, dtype=torch.bfloat16, ignore_index=-100)
    case.target[1] = -100
    for logits in (case.logits, *case.teachers):
        logits[1] = torch.nan
    rows = computed(rows_of(case))
    assert rows.gradient is not None
    assert not rows.losses[1].any()
    assert not rows.parts[:, 1].any()
    assert not rows.gradient[1].any()
    assert rows.gradient.isfinite().all()


@gpu
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("V", [127, 50257])
def test_classes_that_are_ruled_out(V: int, temperature: float) -> None:
    case = random_case(V=V, dtype=torch.float32, temperature=temperature)
    case.target[:] = 0
    for logits in (case.logits, *case.teachers):
        logits[:, V // 2 :] = -torch.inf
    case.logits[:, V // 4] = 5.0
    for teacher in case.teachers:
        teacher[:, V // 4] = -torch.inf
    assert_matches_reference(case, computed(rows_of(case)))


@gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("N", [1, 3])
def test_rows_begin_at_any_address(N: int, dtype: torch.dtype) -> None:
    case = random_case(V=4001, N=N, dtype=dtype, label_smoothing=0.1)
    wide = [torch.zeros(len(x), 4001 + 7, dtype=dtype) for x in (case.logits, *case.teachers)]
    views = [moved(x)[:, shift : shift + 4001] for shift, x in enumerate(wide, start=1)]
    for view, logits in zip(views, (case.logits, *case.teachers), strict=True):
        view.copy_(logits)
    assert_matches_reference(case, computed(rows_of(case, logits=views[0], teachers=views[1:])))


@gpu
@pytest.mark.parametrize("lse_is_given", [False, True])
def test_the_same_bits_every_time(lse_is_given: bool) -> None:
    case = random_case(rows=64, V=128256, N=3, dtype=torch.bfloat16, lse_is_given=lse_is_given)
    assert_same(computed(rows_of(case)), computed(rows_of(case)))


@gpu
def test_in_a_cuda_graph() -> None:
    case = random_case(V=128256, dtype=torch.bfloat16)
    rows = rows_of(case)
    expected = computed(rows)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        cuda_codistillation.run(rows)
    for output in (rows.losses, rows.parts, rows.gradient):
        assert output is not None
        output.fill_(torch.nan)
    graph.replay()
    assert rows.gradient is not None
    replayed = replace(rows, losses=rows.losses.cpu(), parts=rows.parts.cpu(), gradient=rows.gradient.cpu())
    assert_same(replayed, expected)


@gpu
@pytest.mark.parametrize("case", [random_case(V=300_000, N=2), random_case(N=9)], ids=["row", "teachers"])
def test_a_row_that_does_not_fit_is_refused(case: Case) -> None:
    with pytest.raises(RuntimeError, match=r"bytes\); use implementation='triton'"):
        cuda_codistillation.run(rows_of(case))


@pytest.mark.launch
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="GPU: no nvcc, which compiles for one")
@pytest.mark.parametrize("architecture", ["sm_90", "sm_100"])
def test_compiles_without_spilling_registers(architecture: str, tmp_path: Path) -> None:
    known = subprocess.run(["nvcc", "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
    if architecture not in known.split():
        pytest.skip(f"GPU: this nvcc is too old for {architecture}")
    source = Path(cuda_codistillation.__file__).with_name("codistillation.cu")
    flags = ["-std=c++17", "-O3", f"-arch={architecture}", "-cubin", "-Xptxas=-v", "-o", str(tmp_path / "cubin")]
    result = subprocess.run(["nvcc", *flags, str(source)], capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stderr
    used = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", result.stderr)
    assert len(used) == 20
    assert set(used) == {("0", "0", "0")}, result.stderr
