"""The loss of hidden states on a GPU, without one: its launches, and its results with the dtypes of a GPU."""

# ruff: noqa: N803 - V, D and N are the names in the formula

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fake_gpu import Launches, recorded_launches
from hpcdistill.kernels.rows import Rows
from hpcdistill.losses import linear_chunks, linear_gemms, ops
from hpcdistill.losses.linear_chunks import Call
from linear_oracle import Cap, LinearCase, random_linear_case

pytestmark = pytest.mark.alone

TOKENS, D, V, CHUNKS = 64, 32, 1000, 3
GEMMS = {"mm.dtype_out", "addmm.dtype_out", "addmm_.default"}


def call_of(N: int, dtype: torch.dtype, head_dtype: torch.dtype, logits_dtype: torch.dtype, **changes: Any) -> Call:
    """Return a call of three chunks, all of whose gradients are wanted; its tensors are empty."""
    rows = TOKENS * CHUNKS

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    call = Call(
        hidden=empty(rows, D, dtype=dtype),
        weight=empty(V, D, dtype=head_dtype),
        bias=None,
        target=empty(rows, dtype=torch.int64),
        class_weight=None,
        scales=empty(3),
        teacher_hidden=[empty(rows, D, dtype=dtype) for _ in range(N)],
        teacher_weight=[empty(V, D, dtype=head_dtype) for _ in range(N)],
        teacher_scale=[None] * N,
        teacher_bias=[None] * N,
        logit_scale=0.5,
        logit_softcap=None,
        teacher_logit_scale=[1.0] * N,
        teacher_logit_softcap=[0.0] * N,
        mixture=[1 / N] * N if N else [],
        temperature=1.0,
        label_smoothing=0.0,
        ignore_index=-100,
        implementation="auto",
        logits_dtype=logits_dtype,
        grad_weight_dtype=torch.float32,
        chunk_tokens=TOKENS,
        vocab_parallel=None,
        summed=True,
        wanted=[True, True, False],
        factors=None,
    )
    return replace(call, **{name: change(empty) for name, change in changes.items()})


def launches_of(N: int, *dtypes: torch.dtype, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> list[str]:
    """Return the launches of a call that are as large as a matrix of hidden states, with "loss" for the fused loss."""
    with recorded_launches(TOKENS * D) as launches:
        call = call_of(N, *dtypes, **changes)
        monkeypatch.setattr(ops, "run", lambda implementation, rows: record_loss(launches, implementation, rows))
        linear_chunks.run(call)
    return launches.names


def record_loss(launches: Launches, implementation: str, rows: Rows) -> None:
    assert rows.gradient is not None
    assert rows.gradient.dtype == rows.logits.dtype or implementation != "cuda"
    launches.names.append("loss")


def per_chunk(names: list[str]) -> list[str]:
    """Return the launches of a chunk, after checking that all chunks have the same ones."""
    first = names.index("loss")
    size = len(names) // CHUNKS
    chunks = [names[begin : begin + size] for begin in range(0, len(names), size)]
    assert chunks == [chunks[0]] * CHUNKS
    assert first < size
    return chunks[0]


@pytest.mark.parametrize("N", [0, 1, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("logits", [torch.float32, None])
def test_launches_of_a_chunk(N: int, dtype: torch.dtype, logits: torch.dtype | None, monkeypatch: Any) -> None:
    """Check the GEMMs for the logits, the loss, and the GEMMs for both gradients: no pass adds or converts a matrix."""
    chunk = per_chunk(launches_of(N, dtype, dtype, logits or dtype, monkeypatch=monkeypatch))
    assert len(chunk) <= N + 6
    assert chunk.index("loss") == N + 1
    assert len(chunk) == N + 4
    assert {*chunk} <= {*GEMMS, "loss"}


def test_launches_with_heads_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check a call under autocast: heads are converted once, not for each chunk."""
    dtypes = torch.bfloat16, torch.float32, torch.float32
    names = launches_of(1, *dtypes, monkeypatch=monkeypatch)
    assert names[:2] == ["_to_copy.default"] * 2
    assert len(per_chunk(names[2:])) == 1 + 4


def test_launches_of_the_cuda_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that one pass converts the gradient, which this kernel writes in the dtype of the logits."""
    dtypes = torch.bfloat16, torch.bfloat16, torch.float32
    names = launches_of(1, *dtypes, monkeypatch=monkeypatch, implementation=lambda _: "cuda")
    chunk = per_chunk(names)
    assert chunk[3] == "_to_copy.default"
    assert {*chunk[:2], *chunk[4:]} <= GEMMS
    assert len(chunk) == 1 + 5


def test_a_bias_costs_one_pass_for_each_model_and_one_for_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    dtypes = torch.bfloat16, torch.bfloat16, torch.float32
    changes = {
        "bias": lambda empty: empty(V),
        "teacher_bias": lambda empty: [empty(V)],
        "wanted": lambda _: [True, True, True],
    }
    chunk = per_chunk(launches_of(1, *dtypes, monkeypatch=monkeypatch, **changes))
    assert sorted({*chunk} - GEMMS - {"loss"}) == ["add_.Tensor", "sum.dim_IntList"]
    assert len(chunk) == 1 + 4 + 2 + 1


# Results with the dtypes of a GPU, in which a CPU's GEMMs cannot multiply.


@pytest.fixture
def gpu_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Choose dtypes as on a GPU, and multiply them in float32."""

    def add_product(out: Tensor, left: Tensor, right: Tensor, beta: int = 1, alpha: float = 1.0) -> None:
        assert left.dtype == right.dtype == linear_gemms.factor_dtype(left.dtype, out.dtype, out.device)
        product = alpha * (left.float() @ right.float())
        out.copy_(product + out if beta else product)

    linear_gemms._widens.cache_clear()
    monkeypatch.setattr(linear_gemms, "_widens", lambda device: True)
    for module in (linear_gemms, linear_chunks):
        monkeypatch.setattr(module, "add_product", add_product)


@pytest.mark.usefixtures("gpu_dtypes")
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("cap", [Cap(), Cap(0.5, 5.0)])
@pytest.mark.parametrize("head_dtype", [torch.bfloat16, torch.float32])
def test_gradients_through_16_bits(cap: Cap, reduction: str, head_dtype: torch.dtype) -> None:
    case = random_linear_case(rows=50, V=300, D=64, N=2, dtype=torch.bfloat16, scale=3.0)
    case = replace(case, cap=cap, case=replace(case.case, logits=cap.logits(case.student)))
    case = with_heads(case, head_dtype)
    factors = torch.linspace(-1, 2, 50, dtype=torch.float64) if reduction == "none" else 0.5
    loss, gradients = case.differentiated(factors, reduction=reduction, chunk_tokens=16, implementation="torch")
    true_loss, true_gradients = case.reference(reduction, factors)
    torch.testing.assert_close(loss.double(), true_loss, rtol=1e-5, atol=1e-5)
    for gradient, true in zip(gradients, true_gradients, strict=True):
        # The gradient by logits is rounded to 8 bits once, with a cap or with factors once more, the result once.
        assert (gradient.double() - true).norm() < 2**-8 * true.norm()


def with_heads(case: LinearCase, dtype: torch.dtype) -> LinearCase:
    student, *teachers = (
        replace(model, weight=model.weight.to(dtype)) for model in (case.student, *case.teachers) if model is not None
    )
    return replace(case, student=student, teachers=teachers)
