"""The CUDA kernel on an emulated GPU, on a GPU with clusters if there is one, and its machine code.

To check its memory accesses on a GPU (also with --tool racecheck, initcheck, synccheck):
    compute-sanitizer --tool memcheck python -m pytest tests/kernels/test_cuda_codistillation.py -m "not launch"
"""

# ruff: noqa: N803, N806 - V and N are the names in the formula

import importlib
import os
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import emulated_cuda
from emulated_cuda import EmulationError
from hpcdistill.kernels import cuda_codistillation
from hpcdistill.kernels.c_interface import CRows
from hpcdistill.kernels.rows import Rows
from loss_oracle import Case, assert_matches_reference, cases, on, random_case
from repository import ROOT

pytestmark = pytest.mark.alone

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
# Each takes about 60 ms.
EMULATED_CASES = int(os.environ.get("EMULATED_CASES", "60"))
# Each synchronization of the kernel, in the order in which a thread with one teacher comes to them.
SYNCHRONIZATIONS = [
    *(("block barrier", number) for number in range(4)),
    *(("cluster barrier", number) for number in range(3)),
    ("copy", 0),
    ("copy", 1),
    ("store", 0),
    ("fence", 0),
    ("fence", 1),
]

Compute = Callable[[Rows], Rows]


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
emulated = pytest.mark.skipif(emulated_cuda.COMPILER is None, reason="no C++ compiler")


def rows_of(case: Case, **changes: Any) -> Rows:
    return replace(case.rows(), **changes)


def on_gpu(rows: Rows) -> Rows:
    """Run the kernel on the GPU; return `rows` with its outputs on the CPU."""
    rows = on(rows, "cuda")
    cuda_codistillation.run(rows)
    return on(rows, "cpu")


def on_emulated_gpu(rows: Rows) -> Rows:
    emulated_cuda.run(rows)
    return rows


@pytest.fixture(params=[pytest.param(on_emulated_gpu, marks=emulated), pytest.param(on_gpu, marks=gpu)])
def computed(request: pytest.FixtureRequest) -> Compute:
    """Return a function that runs the kernel on `rows` and returns them with its outputs on the CPU."""
    compute: Compute = request.param
    return compute


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
    assert_matches_reference(case, on_gpu(case.rows()))


@emulated
@settings(max_examples=EMULATED_CASES, suppress_health_check=list(HealthCheck))
@given(
    case=cases([1, 2, 11, 127, 1003, 2000], DTYPES, most_rows=2),
    blocks=st.sampled_from([1, 2, 5, 16]),
    seed=st.integers(0, 2**32 - 1),
)
def test_emulated_loss_and_gradient_match_the_formula(case: Case, blocks: int, seed: int) -> None:
    rows = case.rows()
    emulated_cuda.run(rows, kilobytes=kilobytes(case, blocks), seed=seed)
    assert_matches_reference(case, rows)


def kilobytes(case: Case, blocks: int) -> int:
    """Return a size of shared memory with which a row needs about `blocks` blocks."""
    own = 8 if case.logits.dtype == torch.float64 else 5  # what the kernel needs beside the rows
    return own + (1 + len(case.teachers)) * (case.logits.shape[1] * case.logits.element_size() + 31) // blocks // 1024


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("V", [1000, 20011])
def test_the_gradient_may_overwrite_the_logits(computed: Compute, V: int, dtype: torch.dtype) -> None:
    case = random_case(rows=2, V=V, dtype=dtype, temperature=2.0)
    rows = replace(case, logits=case.logits.clone()).rows()
    assert_same(computed(replace(rows, gradient=rows.logits)), computed(case.rows()))


def test_the_losses_are_the_same_without_a_gradient(computed: Compute) -> None:
    case = random_case(rows=2, V=50257, dtype=torch.bfloat16, z_loss=1e-4)
    losses = computed(rows_of(case, gradient=None))
    assert torch.equal(losses.losses, computed(case.rows()).losses)


def test_a_label_out_of_range_makes_its_row_nan(computed: Compute) -> None:
    V = 5003
    case = random_case(rows=5, V=V, dtype=torch.bfloat16, class_weight=torch.ones(V))
    good = computed(case.rows())
    target = case.target.clone()
    target[torch.tensor([0, 2, 3])] = torch.tensor([V, -1, 2**40])
    bad = computed(rows_of(case, target=target))
    assert bad.gradient is not None
    assert good.gradient is not None
    assert bad.losses.isnan().tolist() == [True, False, True, True, False]
    assert bad.gradient.isnan().all(1).tolist() == [True, False, True, True, False]
    assert torch.equal(bad.losses[[1, 4]], good.losses[[1, 4]])
    assert torch.equal(bad.gradient[[1, 4]], good.gradient[[1, 4]])


@pytest.mark.parametrize("V", [11, 5003])
def test_ignored_rows_are_not_read(computed: Compute, V: int) -> None:
    case = random_case(V=V, dtype=torch.bfloat16, ignore_index=-100)
    case.target[1] = -100
    for logits in (case.logits, *case.teachers):
        logits[1] = torch.nan
    rows = computed(case.rows())
    assert rows.gradient is not None
    assert not rows.losses[1].any()
    assert not rows.parts[:, 1].any()
    assert not rows.gradient[1].any()
    assert rows.gradient.isfinite().all()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("N", [1, 2])
def test_classes_that_are_ruled_out(computed: Compute, N: int, dtype: torch.dtype, temperature: float) -> None:
    V = 1003
    case = random_case(rows=2, V=V, N=N, dtype=dtype, temperature=temperature)
    case.target[:] = 0
    for logits in (case.logits, *case.teachers):
        logits[:, V // 2 :] = -torch.inf
    case.logits[:, V // 4] = 5.0
    for teacher in case.teachers:
        teacher[:, V // 4] = -torch.inf
    assert_matches_reference(case, computed(case.rows()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("N", [1, 3])
def test_rows_begin_at_any_address(computed: Compute, N: int, dtype: torch.dtype) -> None:
    V = 1001
    case = random_case(rows=9, V=V, N=N, dtype=dtype, label_smoothing=0.1)
    outputs = torch.full((9, V + 7), torch.nan, dtype=dtype)
    wide = [torch.zeros(9, V + shift, dtype=dtype) for shift in range(1, 2 + N)]
    views = [x[:, shift : shift + V] for shift, x in enumerate(wide, start=1)]
    for view, logits in zip(views, (case.logits, *case.teachers), strict=True):
        view.copy_(logits)
    rows = rows_of(case, logits=views[0], teachers=views[1:], gradient=outputs[:, 3 : 3 + V])
    rows = computed(rows)
    assert_matches_reference(case, rows)


@pytest.mark.parametrize("lse_is_given", [False, True])
def test_the_same_bits_every_time(computed: Compute, lse_is_given: bool) -> None:
    case = random_case(rows=2, V=20011, N=3, dtype=torch.bfloat16, lse_is_given=lse_is_given)
    assert_same(computed(case.rows()), computed(case.rows()))


@gpu
def test_in_a_cuda_graph() -> None:
    case = random_case(V=128256, dtype=torch.bfloat16)
    rows = on(case.rows(), "cuda")
    expected = on_gpu(case.rows())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        cuda_codistillation.run(rows)
    for output in (rows.losses, rows.parts, rows.gradient):
        assert output is not None
        output.fill_(torch.nan)
    graph.replay()
    assert_same(on(rows, "cpu"), expected)


@gpu
@pytest.mark.parametrize("case", [random_case(V=300_000, N=2), random_case(N=9)], ids=["row", "teachers"])
def test_a_row_that_does_not_fit_is_refused(case: Case) -> None:
    with pytest.raises(RuntimeError, match=r"bytes\); use implementation='triton'"):
        on_gpu(case.rows())


@emulated
@pytest.mark.parametrize("case", [random_case(V=300_000, N=2), random_case(N=9)], ids=["row", "teachers"])
def test_the_launcher_refuses_a_row_that_does_not_fit(case: Case) -> None:
    with pytest.raises(EmulationError, match="refused by the launcher"):
        emulated_cuda.run(case.rows())


@emulated
def test_threads_in_any_order_give_the_same_bits() -> None:
    case = random_case(rows=1, V=5003, N=2, dtype=torch.bfloat16, temperature=2.0)
    first, *others = [case.rows() for _ in range(8)]
    emulated_cuda.run(first, kilobytes=10)
    for seed, rows in enumerate(others, start=1):
        emulated_cuda.run(rows, kilobytes=10, seed=seed)
        assert_same(rows, first)


@emulated
@pytest.mark.parametrize("removed", SYNCHRONIZATIONS, ids=lambda removed: "-".join(map(str, removed)))
def test_each_synchronization_is_needed(removed: tuple[str, int]) -> None:
    """A thread that does not wait has other results or does what the emulation detects, soon if not in every run."""
    assert any(what_is_wrong(removed, seed) for seed in range(100))


@emulated
@pytest.mark.parametrize(
    ("removed", "message"),
    [
        (("cluster barrier", 0), "access to the shared memory of a block that has not begun"),
        (("cluster barrier", 2), "access to the shared memory of a block that has ended"),
        (("store", 0), "a block has ended before its bulk store has read the shared memory"),
        (("fence", 0), "a bulk copy starts before a fence after init_barrier"),
        (("fence", 1), "a bulk store without a fence of each thread before"),
    ],
)
def test_what_the_emulation_detects(removed: tuple[str, int], message: str) -> None:
    assert any(what_is_wrong(removed, seed) == message for seed in range(100))


def what_is_wrong(removed: tuple[str, int], seed: int) -> str:
    """Return the emulation's error or the difference to the reference of a run in two blocks; "" if there is none."""
    case = random_case(rows=1, V=2003, N=1, dtype=torch.bfloat16)
    rows = case.rows()
    try:
        emulated_cuda.run(rows, kilobytes=7, seed=seed, removed=removed)
        assert_matches_reference(case, rows)
    except (EmulationError, AssertionError) as error:
        return str(error)
    return ""


@emulated
def test_the_runtime_is_asked_once_for_a_device_and_shape() -> None:
    rows = random_case(rows=1, V=1234).rows()
    assert emulated_cuda.run(rows, device=3).queries > 0
    again = emulated_cuda.run(rows, device=3)
    assert (again.queries, again.device) == (0, 3)
    assert emulated_cuda.run(rows, device=4).queries > 0


@emulated
def test_large_clusters_only_where_they_run() -> None:
    case = random_case(rows=1, V=8000, N=1, dtype=torch.bfloat16)
    rows = case.rows()
    emulated_cuda.run(rows, kilobytes=7)  # 16 blocks
    assert_matches_reference(case, rows)
    with pytest.raises(EmulationError, match="refused by the launcher"):
        emulated_cuda.run(case.rows(), kilobytes=7, most_blocks=8)


def test_a_gradient_of_another_dtype_is_refused() -> None:
    rows = random_case(dtype=torch.float32).rows()
    with pytest.raises(ValueError, match=r"the gradient is torch.bfloat16; compiled kernels write torch.float32"):
        CRows.from_rows(replace(rows, gradient=rows.logits.bfloat16()))


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import tools/cuda_counts.py, which reads the library that the set-up has built."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    counts = importlib.import_module("cuda_counts")
    if not counts.LIBRARY.exists() or counts.cuobjdump() is None:
        pytest.skip("GPU: the kernel was not built, or there is no cuobjdump")
    return counts


@pytest.mark.launch
@pytest.mark.parametrize("architecture", ["sm_90", "sm_100"])
def test_no_register_is_spilled(counts: ModuleType, architecture: str) -> None:
    usage = counts.usage(architecture)
    if not usage:
        pytest.skip(f"GPU: the library was built without {architecture}")
    assert len(usage) == 20
    assert {spilled for _, spilled in usage.values()} == {0}


@emulated
@pytest.mark.launch
def test_instructions_of_a_column(counts: ModuleType) -> None:
    costs = counts.costs()
    if not costs:
        pytest.skip("GPU: the library was built without sm_90")
    assert len(costs) == 4
    for V, launch in counts.LAUNCHES.items():
        case = random_case(rows=1, V=V, N=1, dtype=torch.bfloat16)
        launched = emulated_cuda.run(rows_of(case, target=torch.tensor([case.ignore_index])))
        assert (launched.blocks, launched.threads) == launch
        for kind, cost in costs.items():
            assert cost.per_column(V) <= (37 if "T ≠ 1" in kind else 31)
            assert cost.unaligned <= 3.5
