"""The loss of hidden states: results, memory, and refusals."""

# ruff: noqa: N803, N806 - V, D and N are the names in the formula

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import accumulate
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd.profiler import profile
from torch.utils.checkpoint import checkpoint

from hpcdistill import codistillation_loss, linear_codistillation_loss
from hpcdistill.losses import linear_chunks, linear_gemms, linear_ops
from linear_oracle import (
    Cap,
    LinearCase,
    Model,
    assert_matches_reference,
    gradients_of,
    linear_cases,
    random_linear_case,
)

pytestmark = pytest.mark.alone


@pytest.fixture(autouse=True, scope="module")
def several_tiles() -> Iterator[None]:
    """Make the pieces in which heads are converted smaller than the heads of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear_gemms, "TILE", 50)
        yield


def materialised(case: LinearCase, student: Model) -> Tensor:
    """Compute the mean from the logits of all rows, in float32."""

    def logits(model: Model) -> Tensor:
        return F.linear(model.hidden.float(), model.weight.float(), None if model.bias is None else model.bias.float())

    teachers = [logits(teacher) for teacher in case.teachers]
    return codistillation_loss(logits(student), case.case.target, teachers, temperature=case.case.temperature)


@given(
    linear_cases([1, 2, 127]),
    st.sampled_from(["none", "mean", "sum"]),
    st.sampled_from([1, 2, 3, 100, "auto"]),
    st.sampled_from(["cpu", "torch"]),
    st.booleans(),
)
def test_loss_and_gradients_match_the_formula(
    case: LinearCase, reduction: str, chunk_tokens: int | str, implementation: str, scaled: bool
) -> None:
    factors: float | Tensor = 1.0
    if scaled:
        rows = len(case.case.target)
        factors = torch.linspace(-1, 2, rows, dtype=torch.float64) if reduction == "none" and rows else 0.5
    assert_matches_reference(case, reduction, factors, chunk_tokens=chunk_tokens, implementation=implementation)


@pytest.mark.parametrize("N", [0, 1, 2, 3])
@pytest.mark.parametrize("chunk_tokens", [1, 7, 16, 30, 1000])
def test_chunks_that_do_not_divide_the_tokens(N: int, chunk_tokens: int) -> None:
    assert_matches_reference(random_linear_case(rows=30, N=N), chunk_tokens=chunk_tokens)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_error_of_gradients_no_larger_than_with_all_logits_in_float32(dtype: torch.dtype, temperature: float) -> None:
    case = random_linear_case(rows=100, V=1000, D=64, dtype=dtype, temperature=temperature)
    student = Model(*(x.clone().requires_grad_() for x in vars(case.student).values()))
    theirs = gradients_of(materialised(case, student), student)
    _, ours = case.differentiated(chunk_tokens=16)
    _, true = case.reference()
    for our, their, exact in zip(ours, theirs, true, strict=True):
        error, limit = ((gradient.double() - exact).norm() / exact.norm() for gradient in (our, their))
        assert error <= 1.05 * limit + 1e-7  # the same roundings in another order


def test_the_chunks_are_summed_in_float32_by_default() -> None:
    """Check a small row: in bfloat16 a large sum loses the contribution of a single row."""
    case = random_linear_case(rows=600, V=20, N=1, dtype=torch.bfloat16, biased=False)
    _, (_, true) = case.reference("sum")
    errors = {}
    for dtype in (torch.float32, None):
        _, (_, by_weight) = case.differentiated(reduction="sum", chunk_tokens=1, grad_weight_dtype=dtype)
        errors[dtype] = ((by_weight.double() - true).norm() / true.norm()).item()
    assert errors[torch.float32] < 2**-9
    assert errors[None] > 4 * errors[torch.float32]


def test_logits_are_in_float32_by_default() -> None:
    case = random_linear_case(rows=50, V=300, D=64, dtype=torch.bfloat16, biased=False, scale=5)
    _, (true, _) = case.reference()
    errors = {}
    for dtype in (torch.float32, None):
        _, (by_hidden, _) = case.differentiated(logits_dtype=dtype)
        errors[dtype] = ((by_hidden.double() - true).norm() / true.norm()).item()
    assert errors[torch.float32] < 2**-8
    assert 2 * errors[torch.float32] < errors[None] < 0.05


def test_a_mean_in_float16_keeps_its_small_gradients() -> None:
    """A probability of 1e-5 divided by a thousand rows underflows in float16, unless it is scaled."""
    hidden = torch.full((1000, 1), 10.0, dtype=torch.float16, requires_grad=True)
    weight = torch.tensor([[0.0], [-1.0]], dtype=torch.float16, requires_grad=True)
    loss = linear_codistillation_loss(hidden, weight, torch.zeros(1000, dtype=torch.int64), chunk_tokens=300)
    loss.mul(2.0**15).backward()
    expected = torch.tensor(-10.0).sigmoid() * 2**15 / 1000
    torch.testing.assert_close(hidden.grad, -expected.expand(1000, 1).half())
    torch.testing.assert_close(weight.grad[1], 10000 * expected.half().reshape(1), rtol=2e-3, atol=0)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_parts_and_any_leading_shape(reduction: str) -> None:
    case = random_linear_case(rows=6, N=3, z_loss=0.1, temperature=2.0)
    case.case.target[1] = -100

    def shaped(x: Tensor) -> Tensor:
        return x.view(2, 3, -1)

    expected = codistillation_loss(
        shaped(case.case.logits),
        case.case.target.view(2, 3),
        [shaped(teacher) for teacher in case.case.teachers],
        z_loss=0.1,
        temperature=2.0,
        reduction=reduction,
        return_parts=True,
    )
    models = [replace(model, hidden=shaped(model.hidden).double()) for model in (case.student, *case.teachers)]
    target = case.case.target.view(2, 3)
    actual = replace(case, student=models[0], teachers=models[1:], case=replace(case.case, target=target)).loss(
        reduction=reduction, chunk_tokens=4, return_parts=True
    )
    torch.testing.assert_close(actual, expected)


def test_stacked_teachers() -> None:
    case = random_linear_case(N=1, biased=False)
    hidden, weight = torch.randn(3, 7, 5), torch.randn(3, 110, 5)
    args = case.student.hidden, case.student.weight, case.case.target
    stacked = linear_codistillation_loss(*args, hidden, weight)
    torch.testing.assert_close(stacked, linear_codistillation_loss(*args, list(hidden), list(weight)))


def test_losses_of_micro_batches_with_a_normalizer_add_up() -> None:
    case = random_linear_case()
    case.case.target[2] = -100
    whole = case.differentiated()
    for normalizer in (6, torch.tensor(6)):
        total = 0
        for rows in (slice(0, 1), slice(1, 7)):
            models = [replace(model, hidden=model.hidden[rows]) for model in (case.student, *case.teachers)]
            part = LinearCase(models[0], models[1:], replace(case.case, target=case.case.target[rows]))
            total += part.differentiated(normalizer=normalizer)[0]
        torch.testing.assert_close(total, whole[0])


@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_without_rows_the_loss_is_zero_and_not_nan(rows: int, reduction: str) -> None:
    case = random_linear_case(rows=rows)
    case.case.target.fill_(-100)
    loss, gradients = case.differentiated(reduction=reduction)
    assert not loss.any()
    assert [gradient.shape for gradient in gradients] == [(rows, 8), (110, 8), (110,)]
    assert not any(gradient.any() for gradient in gradients)


def test_teachers_of_weight_zero_are_not_read() -> None:
    case = random_linear_case(N=2)
    broken = replace(case.teachers[0], hidden=torch.full_like(case.teachers[0].hidden, torch.nan))
    with_broken = replace(case, teachers=[broken, case.teachers[1]])
    alone = replace(case, teachers=case.teachers[1:])
    shares = replace(with_broken, case=replace(case.case, teacher_weights=[0.0, 3.0]))
    torch.testing.assert_close(shares.differentiated(), alone.differentiated())
    burn_in = replace(with_broken, case=replace(case.case, distill_weight=0.0))
    torch.testing.assert_close(burn_in.differentiated(), replace(case, teachers=[]).differentiated())


# Scaled and capped logits; `test_loss_and_gradients_match_the_formula` draws them, too.


def capped(case: LinearCase, cap: Cap, *teacher_caps: Cap) -> LinearCase:
    """Return `case` with scales and soft caps of the logits."""
    caps = teacher_caps or [Cap()] * len(case.teachers)
    logits = [cap.logits(teacher) for cap, teacher in zip(caps, case.teachers, strict=True)]
    changed = replace(case.case, logits=cap.logits(case.student), teachers=logits)
    return replace(case, cap=cap, teacher_caps=list(teacher_caps), case=changed)


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_number_is_the_scale_or_the_cap_of_all_teachers(softcap: float | None, dtype: torch.dtype) -> None:
    case = random_linear_case(N=2, dtype=dtype)
    numbers = {"teacher_logit_scale": 0.5, "teacher_logit_softcap": softcap}
    expected = capped(case, Cap(), Cap(0.5, softcap), Cap(0.5, softcap)).differentiated()
    torch.testing.assert_close(case.differentiated(**numbers), expected, rtol=0, atol=0)
    assert expected[0] != case.differentiated()[0]


def test_the_cap_comes_after_the_scale_and_the_bias() -> None:
    """Check a student whose products are 0, so that its logits are those of its bias."""
    bias = torch.tensor([0.0, 40.0], requires_grad=True)
    loss = linear_codistillation_loss(
        torch.zeros(1, 3), torch.ones(2, 3), torch.tensor([0]), linear_bias=bias, logit_scale=0.5, logit_softcap=10.0
    )
    logit = 10 * torch.tensor(0.5 * 40 / 10).tanh()
    torch.testing.assert_close(loss.detach(), (1 + logit.exp()).log())
    loss.backward()
    probability, slope = logit.sigmoid(), 0.5 * (1 - (logit / 10) ** 2)
    torch.testing.assert_close(bias.grad, torch.stack([-0.5 * probability, slope * probability]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_capped_logits_of_16_bits(dtype: torch.dtype) -> None:
    """A cap adds a rounding, and no cancellation: errors stay those of 16-bit logits without a cap."""
    case = random_linear_case(rows=50, V=300, D=64, dtype=dtype, biased=False, scale=5)
    errors = []
    for each in (case, capped(case, Cap(1.0, 10.0), Cap(1.0, 10.0), Cap(1.0, 10.0))):
        _, (true, *_) = each.reference()
        _, (by_hidden, *_) = each.differentiated(logits_dtype=None)
        errors.append(((by_hidden.double() - true).norm() / true.norm()).item())
    assert errors[1] < 1.5 * errors[0]


def test_the_gradient_of_a_cap_takes_one_more_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = buffer_sizes(monkeypatch)
    case = random_linear_case(rows=4800, V=3, D=2400, N=1)
    for each in (case, capped(case, Cap(1.0, 30.0))):
        each.loss()
        each.differentiated()
        each.differentiated(reduction="none")
    assert sizes == [1200, 1200, 1200, 1200, 1200, 800, 1200, 800]  # "none" computes its gradient in the backward


# Memory and GEMMs.


def allocations(work: Callable[[], Any]) -> int:
    """Return the peak of the memory that `work` allocates, in bytes; blocks of `buffers`, all larger, are not seen."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    with profile(profile_memory=True) as recorded:
        work()
    events = [event for event in recorded.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


@pytest.mark.parametrize("softcap", [None, 30.0])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_memory_is_far_below_that_of_all_logits(reduction: str, softcap: float | None) -> None:
    rows, V, chunk_tokens, N = 4096, 500, 64, 2
    device = "cuda" if torch.cuda.is_available() else "cpu"
    case = capped(on(device, random_linear_case(rows=rows, V=V, N=N)), Cap(0.5, softcap))
    all_logits, buffers = 4 * rows * V, 4 * (1 + N + bool(softcap)) * chunk_tokens * V
    student = Model(*(x.requires_grad_() for x in vars(case.student).values()))

    def ours() -> None:
        gradients_of(case.loss(student, reduction=reduction, chunk_tokens=chunk_tokens).sum(), student)

    gradients = sum(x.nbytes for x in vars(student).values())
    # In addition there are a few numbers for each row: losses, parts, labels.
    assert buffers < allocations(ours) < buffers + 2 * gradients + 64 * rows < all_logits / 7
    assert allocations(lambda: gradients_of(materialised(case, student), student)) > all_logits


def gemms(work: Callable[[], Any]) -> list[list[int]]:
    """Return the sizes of each product: rows and columns of its left factor, columns of its right factor."""
    with profile(record_shapes=True) as recorded:
        work()
    shapes = [event.input_shapes for event in recorded.function_events if event.name == "aten::addmm_"]
    return sorted([*left, right[1]] for _, left, right, *_ in shapes)


@pytest.mark.parametrize("cap", [Cap(), Cap(0.5, 5.0)])
def test_gradients_that_are_not_wanted_cost_no_gemm(cap: Cap) -> None:
    rows, V, D = 6, 110, 8
    case = capped(random_linear_case(rows=rows, V=V, D=D, N=0), cap)
    logits, by_hidden, by_weight = [rows, D, V], [rows, V, D], [V, rows, D]

    def products(*trained: bool, **options: Any) -> list[list[int]]:
        student = Model(
            *(x.detach().requires_grad_(wanted) for x, wanted in zip(vars(case.student).values(), trained, strict=True))
        )

        def work() -> None:
            loss = case.loss(student, **options).sum()
            if loss.requires_grad:
                loss.backward()

        return gemms(work)

    assert products(True, True, True) == sorted([logits, by_hidden, by_weight])
    assert products(True, False, False) == sorted([logits, by_hidden])  # a frozen head
    assert products(False, True, False) == sorted([logits, by_weight])  # a frozen trunk
    assert products(False, False, False) == [logits]
    assert products(True, False, True, reduction="none") == sorted([logits, logits, by_hidden])
    with torch.no_grad():
        assert products(True, True, True) == [logits]


# Autograd and torch.compile.


def test_a_frozen_head_gets_no_gradient() -> None:
    """Check a frozen head: with LoRA, for example, the hidden states learn while the head is frozen."""
    case = random_linear_case(biased=False)
    for reduction in ("mean", "none"):
        hidden = case.student.hidden.clone().requires_grad_()
        case.loss(Model(hidden, case.student.weight), reduction=reduction).mean().backward()
        assert case.student.weight.grad is None
        expected = case.differentiated(1 if reduction == "mean" else 1 / 7, reduction=reduction)[1][0]
        torch.testing.assert_close(hidden.grad, expected)


def test_tied_weights() -> None:
    case = random_linear_case(D=8, biased=False)
    tokens = torch.randint(0, 110, (7,))

    def gradient(loss_of: Callable[[Model], Tensor]) -> Tensor:
        embedding = case.student.weight.clone().requires_grad_()
        loss_of(Model(F.embedding(tokens, embedding).tanh(), embedding)).backward()
        return embedding.grad

    torch.testing.assert_close(gradient(case.loss), gradient(lambda student: materialised(case, student)))


@pytest.mark.parametrize("view", [lambda x: x[3:113], lambda x: x.T.contiguous().T[3:113]])
def test_a_head_that_is_a_view(view: Callable[[Tensor], Tensor]) -> None:
    """The head is a slice of a padded vocabulary, or a transposed matrix."""
    case = random_linear_case()
    padded = torch.randn(120, 8)

    def gradient(loss_of: Callable[[Model], Tensor]) -> Tensor:
        leaf = padded.clone().requires_grad_()
        loss_of(replace(case.student, weight=view(leaf))).backward()
        return leaf.grad

    torch.testing.assert_close(gradient(case.loss), gradient(lambda student: materialised(case, student)))


def test_inputs_are_not_modified() -> None:
    case = random_linear_case()
    tensors = [x for model in (case.student, *case.teachers) for x in vars(model).values()]
    before = [x.clone() for x in tensors]
    case.differentiated(chunk_tokens=2)
    case.differentiated(chunk_tokens=2, reduction="none")
    assert all(map(torch.equal, tensors, before))


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_no_second_derivative(reduction: str) -> None:
    case = random_linear_case()
    hidden = case.student.hidden.clone().requires_grad_()
    loss = case.loss(replace(case.student, hidden=hidden), reduction=reduction).sum()
    with pytest.raises(RuntimeError, match=r"no second derivative.*create_graph"):
        torch.autograd.grad(loss, hidden, create_graph=True)


def test_second_backward() -> None:
    """A second backward raises if the forward made the gradients, and works if the backward makes them."""
    case = random_linear_case()
    hidden = case.student.hidden.clone().requires_grad_()
    student = replace(case.student, hidden=hidden)
    loss = case.loss(student)
    (2 * loss).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"second backward through one call.*add up the losses"):
        loss.backward()
    losses = case.loss(student, reduction="none")
    first, second = (torch.autograd.grad(losses.sum(), hidden, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_autograd_notices_a_head_that_changes_before_the_backward() -> None:
    case = random_linear_case()
    hidden = case.student.hidden.clone().requires_grad_()
    losses = case.loss(replace(case.student, hidden=hidden), reduction="none")
    case.student.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        losses.sum().backward()


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_checkpointing(reduction: str) -> None:
    case = random_linear_case()
    expected = case.differentiated(reduction=reduction)
    student = Model(*(x.detach().requires_grad_() for x in vars(case.student).values()))

    def loss_of(hidden: Tensor) -> Tensor:
        return case.loss(replace(student, hidden=hidden * 1), reduction=reduction)

    loss = checkpoint(loss_of, student.hidden, use_reentrant=False)
    torch.testing.assert_close((loss.detach(), gradients_of(loss.sum(), student)), expected)


def test_autocast() -> None:
    """Products are in bfloat16 and gradients in the parameters' float32, as in a linear layer."""
    case = random_linear_case(biased=False)
    student = Model(case.student.hidden.clone().requires_grad_(), case.student.weight.clone().requires_grad_())
    with torch.autocast("cpu", torch.bfloat16):
        loss = case.loss(student)
        expected = codistillation_loss(
            F.linear(student.hidden, student.weight),
            case.case.target,
            [F.linear(teacher.hidden, teacher.weight) for teacher in case.teachers],
        )
    torch.testing.assert_close(loss, expected, rtol=2e-2, atol=0)
    assert loss.dtype == torch.float32
    for ours, theirs in zip(gradients_of(loss, student), gradients_of(expected, student), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-2 * theirs.abs().max().item())


@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operator_keeps_torchs_contract(summed: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments: list[Any] = []
    operator = linear_ops.linear_codistillation

    def recorded(*given: Any) -> Any:
        arguments[:] = [x.detach().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x for x in given]
        return operator(*given)

    monkeypatch.setattr("hpcdistill.losses.linear.linear_codistillation", recorded)
    case = random_linear_case(rows=3, V=7, dtype=dtype, class_weight=torch.rand(7))
    case = capped(case, Cap(0.5, 3.0), Cap(), Cap(2.0, 5.0))
    case.differentiated(reduction="sum" if summed else "none", chunk_tokens=2)
    torch.library.opcheck(operator, tuple(arguments))


@pytest.mark.launch  # compiles C++
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_compiles_without_a_graph_break_and_once_for_all_weights(reduction: str) -> None:
    case = capped(random_linear_case(rows=6, V=50, class_weight=torch.rand(50)), Cap(0.5, 3.0))
    counter = CompileCounterWithBackend("inductor")

    @torch.compile(fullgraph=True, backend=counter)
    def loss_of(student: Model, distill_weight: float) -> Tensor:
        weighted = replace(case, case=replace(case.case, distill_weight=distill_weight))
        return weighted.loss(replace(student, hidden=student.hidden * 1), reduction=reduction, chunk_tokens=4).sum()

    for distill_weight in (1.0, 0.5, 0.25, 0.75):
        expected = replace(case, case=replace(case.case, distill_weight=distill_weight)).differentiated(
            reduction=reduction
        )
        student = Model(*(x.detach().requires_grad_() for x in vars(case.student).values()))
        loss = loss_of(student, distill_weight)
        torch.testing.assert_close((loss.detach(), gradients_of(loss, student)), (expected[0].sum(), expected[1]))
    assert counter.frame_count <= 2  # dynamo takes the first weight for a constant, later ones for a variable


# Tokens per chunk.


def buffer_sizes(monkeypatch: pytest.MonkeyPatch, most: float = float("inf")) -> list[int]:
    """Return a list that records the tokens of each new buffer; there is memory for `most` tokens."""
    sizes = []
    new_buffers = linear_chunks._new_buffers

    def recorded(call: linear_chunks.Call, tokens: int) -> linear_chunks.Buffers:
        sizes.append(tokens)
        if tokens > most:
            raise torch.OutOfMemoryError
        return new_buffers(call, tokens)

    monkeypatch.setattr(linear_chunks, "_new_buffers", recorded)
    return sizes


@pytest.mark.parametrize(
    ("D", "N", "rows", "options", "expected"),
    [
        (1200, 0, 2400, {}, 1200),  # logits of 1200 tokens have the size of the head's gradient
        (1200, 1, 1200, {}, 600),
        (1200, 1, 1201, {}, 401),  # three equal chunks, not two and a single row
        (1200, 1, 2400, {"logits_dtype": None}, 1200),  # bfloat16
        (8, 3, 1024, {}, 512),  # the minimum
        (8, 3, 5, {}, 5),  # all tokens
        (8, 3, 1024, {"chunk_tokens": 1024}, 1024),
        (8, 3, 512, {"chunk_tokens": 1}, 1),
    ],
)
def test_tokens_per_chunk(
    D: int, N: int, rows: int, options: dict[str, Any], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = buffer_sizes(monkeypatch)
    random_linear_case(rows=rows, V=3, D=D, N=N, dtype=torch.bfloat16).loss(**options)
    assert sizes == [expected]


def test_without_memory_for_a_chunk_half_of_it_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    case = random_linear_case(rows=101)
    expected = case.differentiated()
    sizes = buffer_sizes(monkeypatch, most=60)
    with pytest.warns(UserWarning, match=r"no memory for the logits of 101 tokens at once; continues with 51"):
        torch.testing.assert_close(case.differentiated(), expected)
    with pytest.raises(torch.OutOfMemoryError):  # an explicit size is not changed
        case.loss(chunk_tokens=101)
    monkeypatch.undo()
    more = buffer_sizes(monkeypatch, most=20)
    with pytest.warns(UserWarning, match="continues with 51"), pytest.raises(torch.OutOfMemoryError):
        case.loss()
    assert (sizes, more) == ([101, 51, 101], [101, 51])


# Refusals.

H, W, Y = torch.zeros(2, 4), torch.zeros(3, 4), torch.zeros(2, dtype=torch.int64)
TH, TW = torch.zeros(2, 5), torch.zeros(3, 5)
INT8 = TW.to(torch.int8), torch.ones(3)
BAD_INPUT = [
    ((H.long(), W, Y), {}, TypeError, r"hidden has dtype torch.int64; convert"),
    ((H, W.long(), Y), {}, TypeError, r"linear_weight has dtype torch.int64; convert"),
    ((H[0, 0], W, Y), {}, ValueError, r"hidden has shape \[\]; pass \[..., D\]"),
    ((H[:, :0], W[:, :0], Y), {}, ValueError, r"hidden has shape \[2, 0\].*D >= 1"),
    ((H, W[0], Y), {}, ValueError, r"linear_weight has shape \[4\]; hidden of shape \[2, 4\] needs \[V, 4\]"),
    ((H, W.T, Y), {}, ValueError, r"linear_weight has shape \[4, 3\]; hidden of shape \[2, 4\] needs \[V, 4\]"),
    ((H, W[:0], Y), {}, ValueError, r"linear_weight has shape \[0, 4\].*V >= 1"),
    ((H, W.to("meta"), Y), {}, ValueError, r"linear_weight is on meta; move it to the student's device, cpu"),
    ((H, W, Y.int()), {}, TypeError, r"target has dtype torch.int32.*target.long\(\)"),
    ((H, W, Y[:1]), {}, ValueError, r"target has shape \[1\]; hidden of shape \[2, 4\] needs .*\[2\]"),
    ((H, W, Y + 3), {}, ValueError, r"target holds 3; labels lie in \[0, 3\)"),
    (
        (H, W, Y),
        {"linear_bias": torch.zeros(4)},
        ValueError,
        r"linear_bias is torch.float32 of shape \[4\]; 3 classes need .*\[3\]",
    ),
    ((H, W, Y), {"linear_bias": Y}, ValueError, r"linear_bias is torch.int64 of shape \[2\]; 3 classes need floats"),
    ((H, W, Y), {"class_weight": torch.ones(2)}, ValueError, r"class_weight is torch.float32 of shape \[2\]"),
    ((H, W, Y, [TH]), {}, ValueError, r"teacher_linear_weight has 0 entries, but teacher_hidden 1"),
    ((H, W, Y, None, [TW]), {}, ValueError, r"teacher_linear_weight has 1 entries, but teacher_hidden 0"),
    ((H, W, Y, [TH], INT8), {}, ValueError, r"teacher_linear_weight has 2 entries, but teacher_hidden 1.*in lists"),
    ((H, W, Y, [TH], [TW]), {"teacher_linear_bias": [None] * 2}, ValueError, r"teacher_linear_bias has 2 entries, but"),
    ((H, W, Y, [None], [TW]), {}, TypeError, r"teacher_hidden\[0\] is a NoneType"),
    ((H, W, Y, [TH], [None]), {}, TypeError, r"teacher_linear_weight\[0\] is a NoneType"),
    ((H, W, Y, TH, [TW] * 2), {}, ValueError, r"teacher_hidden\[0\] has shape \[5\].* needs \[2, 'D'\].*unsqueeze"),
    ((H, W, Y, [TH.long()], [TW]), {}, TypeError, r"teacher_hidden\[0\] has dtype torch.int64"),
    (
        (H, W, Y, [TH], [W]),
        {},
        ValueError,
        r"teacher_linear_weight\[0\] has shape \[3, 4\]; teacher_hidden\[0\].*\[V, 5\]",
    ),
    ((H, W, Y, [TH], [TW.long()]), {}, TypeError, r"teacher_linear_weight\[0\] has dtype torch.int64"),
    (
        (H, W, Y, [TH], [TW[:2]]),
        {},
        ValueError,
        r"teacher_linear_weight\[0\] has 2 classes, but linear_weight 3; .*one vocabulary",
    ),
    ((H, W, Y, [TH], [(TW, INT8[1])]), {}, TypeError, r"teacher_linear_weight\[0\]\[0\] has dtype torch.float32.*int8"),
    ((H, W, Y, [TH], [INT8[:1]]), {}, TypeError, r"teacher_linear_weight\[0\] is a tuple of 1"),
    (
        (H, W, Y, [TH], [(INT8[0], TH)]),
        {},
        ValueError,
        r"teacher_linear_weight\[0\]\[1\] is .* shape \[2, 5\]; 3 classes",
    ),
    (
        (H, W, Y, [TH], [TW]),
        {"teacher_linear_bias": [TH]},
        ValueError,
        r"teacher_linear_bias\[0\] is .* shape \[2, 5\]; 3 classes",
    ),
    ((H, W, Y, [TH.clone().requires_grad_()], [TW]), {}, ValueError, r"teacher_hidden\[0\] requires grad.*detach"),
    (
        (H, W, Y, [TH], [TW.clone().requires_grad_()]),
        {},
        ValueError,
        r"teacher_linear_weight\[0\] requires grad.*detach",
    ),
    ((H, W, Y), {"distill_weight": -1.0}, ValueError, r"distill_weight is -1.0"),
    ((H, W, Y), {"temperature": 0.0}, ValueError, r"temperature is 0.0"),
    ((H, W, Y), {"teacher_weights": [1.0]}, ValueError, r"teacher_weights has 1 numbers for 0 teachers"),
    ((H, W, Y), {"logit_scale": 0.0}, ValueError, r"logit_scale is 0.0; pass a finite number > 0"),
    ((H, W, Y), {"logit_scale": None}, TypeError, r"logit_scale is None; pass a number"),
    ((H, W, Y), {"logit_scale": float("inf")}, ValueError, r"logit_scale is inf"),
    ((H, W, Y), {"logit_softcap": 0.0}, ValueError, r"logit_softcap is 0.0; pass a finite number > 0, or None"),
    ((H, W, Y), {"logit_softcap": -30}, ValueError, r"logit_softcap is -30"),
    ((H, W, Y), {"logit_softcap": float("nan")}, ValueError, r"logit_softcap is nan"),
    ((H, W, Y), {"logit_softcap": "30"}, TypeError, r"logit_softcap is '30'; pass a number"),
    ((H, W, Y, [TH], [TW]), {"teacher_logit_scale": [-1.0]}, ValueError, r"teacher_logit_scale\[0\] is -1.0"),
    ((H, W, Y, [TH], [TW]), {"teacher_logit_softcap": 0}, ValueError, r"teacher_logit_softcap\[0\] is 0"),
    (
        (H, W, Y, [TH], [TW]),
        {"teacher_logit_scale": [1.0, 2.0]},
        ValueError,
        r"teacher_logit_scale has 2 entries, but teacher_hidden 1",
    ),
    (
        (H, W, Y, [TH], [TW]),
        {"teacher_logit_softcap": []},
        ValueError,
        r"teacher_logit_softcap has 0 entries, but teacher_hidden 1",
    ),
    ((H, W, Y), {"reduction": "batchmean"}, ValueError, r"reduction is 'batchmean'"),
    ((H, W, Y), {"chunk_tokens": 0}, ValueError, r"chunk_tokens is 0; pass 'auto' or a whole number > 0"),
    ((H, W, Y), {"chunk_tokens": -5}, ValueError, r"chunk_tokens is -5"),
    ((H, W, Y), {"chunk_tokens": 2.5}, ValueError, r"chunk_tokens is 2.5"),
    ((H, W, Y), {"chunk_tokens": "all"}, ValueError, r"chunk_tokens is 'all'"),
    ((H, W, Y), {"logits_dtype": torch.float16}, ValueError, r"logits_dtype is torch.float16; pass torch.float32, or"),
    ((H, W, Y), {"grad_weight_dtype": torch.int8}, ValueError, r"grad_weight_dtype is torch.int8; pass torch.float32"),
    ((H, W, Y), {"implementation": "triton"}, ValueError, r"implementation is 'triton', but hidden is on cpu"),
]


@pytest.mark.parametrize(("args", "options", "error", "message"), BAD_INPUT)
def test_bad_input(args: tuple[Any, ...], options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        linear_codistillation_loss(*args, **options)


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="GPU: none here")


def on(device: str, case: LinearCase) -> LinearCase:
    student, *teachers = (
        Model(*(x if x is None else x.to(device) for x in vars(model).values()))
        for model in (case.student, *case.teachers)
    )
    return replace(
        case, student=student, teachers=teachers, case=replace(case.case, target=case.case.target.to(device))
    )


@gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_a_gpu_is_never_synchronized(dtype: torch.dtype, reduction: str) -> None:
    """Without any synchronization the error is that of the CPU, except for factors rounded to 16 bits."""
    case = capped(random_linear_case(rows=50, V=3000, D=64, dtype=dtype), Cap(0.5, 30.0))
    there = on("cuda", case)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss, gradients = there.differentiated(reduction=reduction, chunk_tokens=16, check_target=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    true_loss, true_gradients = case.reference(reduction)
    torch.testing.assert_close(loss.cpu().double(), true_loss, rtol=1e-4, atol=0)
    for gradient, true in zip(gradients, true_gradients, strict=True):
        error = (gradient.cpu().double() - true).norm() / true.norm()
        assert error < (1e-4 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps)


@gpu
def test_a_full_gpu_gets_half_a_chunk() -> None:
    case = on("cuda", random_linear_case(rows=1024, V=32000, D=64, N=1))
    expected = case.differentiated()
    torch.cuda.empty_cache()
    chunk = 2 * 1024 * 32000 * 4
    free, _ = torch.cuda.mem_get_info()
    filling = torch.empty(free - chunk * 3 // 4, dtype=torch.uint8, device="cuda")
    with pytest.warns(UserWarning, match="continues with 512"):
        actual = case.differentiated()
    del filling
    torch.testing.assert_close(actual, expected)
