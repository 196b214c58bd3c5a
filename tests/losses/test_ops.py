"""The operators of the loss, with autograd, torch.compile and CUDA graphs."""

import weakref
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from hpcdistill import codistillation_loss
from hpcdistill.kernels.rows import Rows
from hpcdistill.losses import ops
from loss_oracle import Case, loss_and_gradient, random_case, reference

pytestmark = pytest.mark.alone

IMPLEMENTATIONS = ["cpu", "torch"]


def test_no_second_derivative() -> None:
    case = random_case()
    logits = case.logits.requires_grad_()
    with pytest.raises(RuntimeError, match=r"no second derivative.*create_graph"):
        torch.autograd.grad(codistillation_loss(logits, case.target), logits, create_graph=True)


@pytest.mark.parametrize("inplace_grad", [False, True])
def test_no_second_backward_through_one_call(inplace_grad: bool) -> None:
    case = random_case()
    logits = case.logits.requires_grad_() * 1
    loss = codistillation_loss(logits, case.target, inplace_grad=inplace_grad)
    (2 * loss).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"second backward through one call.*add up the losses"):
        loss.backward()


def test_upstream_gradients() -> None:
    """Rows have different weights in the sum, one of them 0, and the losses are used twice."""
    for implementation in IMPLEMENTATIONS:
        case = random_case(dtype=torch.float32)
        weights = torch.tensor([1.0, 0.5, -2.0, 0.0])
        logits = case.logits.clone().requires_grad_()
        losses = codistillation_loss(
            logits, case.target, case.teachers, reduction="none", implementation=implementation
        )
        (gradient,) = torch.autograd.grad(3 * (weights * losses).sum() + losses.sum(), logits)
        expected = reference(case, "none")[1] * (3 * weights + 1).unsqueeze(-1)
        torch.testing.assert_close(gradient.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_teachers_need_not_outlive_the_forward(implementation: str) -> None:
    """N tensors of the size of the logits would be most of a step's memory, if they were kept until the backward."""
    case = random_case(dtype=torch.float32)
    logits = case.logits.requires_grad_()
    teachers = [teacher.clone() for teacher in case.teachers]
    remembered = [weakref.ref(teacher) for teacher in teachers]
    loss = codistillation_loss(logits, case.target, teachers, implementation=implementation)
    del teachers
    assert [reference() for reference in remembered] == [None] * len(remembered)
    loss.backward()


def test_without_grad_no_gradient_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_gradient(implementation: str, rows: Any) -> None:
        assert rows.gradient is None
        run(implementation, rows)

    case = random_case()
    expected = loss_and_gradient(case)[0]
    run = ops.run
    monkeypatch.setattr(ops, "run", without_gradient)
    torch.testing.assert_close(codistillation_loss(case.logits, case.target, case.teachers), expected)
    with torch.no_grad():
        logits = case.logits.requires_grad_()
        torch.testing.assert_close(codistillation_loss(logits, case.target, case.teachers), expected)


def test_gradient_overwrites_the_logits() -> None:
    case = random_case(rows=6, V=300, dtype=torch.float32)
    expected = loss_and_gradient(case)
    leaf = case.logits.clone().requires_grad_()
    logits = (leaf * 1).view(2, 3, 300)
    where = logits.data_ptr()
    arrived = []
    logits.register_hook(lambda gradient: arrived.append(gradient.data_ptr()))
    teachers = [teacher.view(2, 3, 300) for teacher in case.teachers]
    loss = codistillation_loss(logits, case.target.view(2, 3), teachers, inplace_grad=True)
    loss.backward()
    torch.testing.assert_close((loss.detach(), leaf.grad), expected)
    assert arrived == [where]


def test_autograd_detects_logits_that_were_overwritten_too_early() -> None:
    case = random_case()
    logits = case.logits.requires_grad_().exp()  # its backward needs its result
    loss = codistillation_loss(logits, case.target, inplace_grad=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_checkpointing() -> None:
    case = random_case(dtype=torch.float32)
    expected = loss_and_gradient(case)
    logits = case.logits.requires_grad_()
    loss = checkpoint(lambda z: codistillation_loss(z * 1, case.target, case.teachers), logits, use_reentrant=False)
    loss.backward()
    torch.testing.assert_close((loss.detach(), logits.grad), expected)


def test_autocast() -> None:
    case = random_case(rows=8, V=16)
    hidden, head = torch.randn(8, 4), torch.randn(16, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        logits = F.linear(hidden, head)
        loss = codistillation_loss(logits, case.target, [logits.detach()])
    loss.backward()
    assert (logits.dtype, loss.dtype, head.grad.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    torch.testing.assert_close(loss, F.cross_entropy(logits.float(), case.target))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_operators_keep_torchs_contract(implementation: str) -> None:
    case = random_case(rows=3, V=7, dtype=torch.float32, lse_is_given=True, class_weight=torch.rand(7))
    rows = case.rows()
    _, *rest = (getattr(rows, field.name) for field in fields(Rows)[:-4])  # all fields but the outputs and the shard
    torch.library.opcheck(ops.codistillation, (case.logits.requires_grad_(), *rest, implementation, True))
    torch.library.opcheck(ops.codistillation_, (case.logits.detach(), *rest, implementation))


@pytest.mark.launch  # compiles C++
@pytest.mark.parametrize("options", [{}, {"inplace_grad": True}, {"return_parts": True}])
def test_compiles_without_a_graph_break_and_once_for_all_weights(options: dict[str, Any]) -> None:
    case = random_case(rows=6, V=50, dtype=torch.float32, class_weight=torch.rand(50))
    counter = CompileCounterWithBackend("inductor")

    @torch.compile(fullgraph=True, backend=counter)
    def loss_of(logits: Tensor, distill_weight: float) -> Tensor:
        loss = codistillation_loss(
            logits * 1,
            case.target,
            case.teachers,
            distill_weight=distill_weight,
            class_weight=case.class_weight,
            **options,
        )
        return loss[0] if options.get("return_parts") else loss

    for distill_weight in (1.0, 0.5, 0.25, 0.75):
        expected = loss_and_gradient(replace(case, distill_weight=distill_weight))
        logits = case.logits.clone().requires_grad_()
        loss = loss_of(logits, distill_weight)
        loss.backward()
        torch.testing.assert_close((loss.detach(), logits.grad), expected)
    assert counter.frame_count <= 2  # dynamo takes the first weight for a constant, later ones for a variable


def test_the_gradient_of_padded_logits_on_a_gpu_has_their_strides() -> None:
    """Then its rows begin at the same places between vectors of 16 bytes."""
    padded = torch.empty(3, 104, device="meta")
    assert ops._new_gradient(padded[:, :101], 3).stride() == (104, 1)
    assert ops._new_gradient(padded[:, :101], 0).shape == (0, 101)
    assert ops._new_gradient(padded, 3).stride() == (104, 1)
    assert ops._new_gradient(padded[:, :50], 3).stride() == (50, 1)
    assert ops._new_gradient(padded[:1].expand(3, 104), 3).stride() == (104, 1)


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="GPU: none here")


def on_gpu(case: Case) -> Case:
    moved = {field.name: getattr(case, field.name) for field in fields(Case)}
    for name, value in moved.items():
        if isinstance(value, Tensor):
            moved[name] = value.cuda()
    return Case(**moved | {"teachers": [teacher.cuda() for teacher in case.teachers]})


@gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_gpu_is_never_synchronized(dtype: torch.dtype) -> None:
    """Without any synchronization, loss and gradient are those of the CPU."""
    case = random_case(rows=50, V=3000, dtype=dtype, temperature=2.0, z_loss=0.1, class_weight=torch.rand(3000))
    case.target[3] = -100
    there = on_gpu(replace(case, lse_is_given=True))
    options = there.options()
    logits = there.logits.requires_grad_()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = codistillation_loss(logits, there.target, there.teachers, check_target=True, **options)
        (gradient,) = torch.autograd.grad(loss * 2, logits)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected, expected_gradient = loss_and_gradient(replace(case, lse_is_given=True))
    loss_tolerance, gradient_tolerance = case.tolerances()
    torch.testing.assert_close(loss.cpu(), expected, rtol=1e-6, atol=loss_tolerance)
    torch.testing.assert_close(gradient.cpu() / 2, expected_gradient, rtol=0, atol=gradient_tolerance)


@gpu
def test_in_a_cuda_graph() -> None:
    case = on_gpu(random_case(rows=8, V=32000, dtype=torch.bfloat16))
    logits = case.logits.requires_grad_()

    def step() -> tuple[Tensor, Tensor]:
        loss = codistillation_loss(logits, case.target, case.teachers)
        return loss.detach(), torch.autograd.grad(loss, logits)[0]

    expected = [output.clone() for output in step()]
    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = step()
    for output in outputs:
        output.fill_(torch.nan)
    graph.replay()
    torch.testing.assert_close(list(outputs), expected, rtol=0, atol=0)
