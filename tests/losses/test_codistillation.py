"""The public loss: results and refusals."""

# ruff: noqa: N803, N806 - V and N are the names in the formula

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hpcdistill import CodistillationLoss, codistillation_loss
from loss_oracle import Case, cases, loss_and_gradient, random_case, reference

pytestmark = pytest.mark.alone

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
IMPLEMENTATIONS = ["cpu", "torch"]


def assert_matches_reference(
    case: Case, reduction: str = "mean", normalizer: float | None = None, **options: Any
) -> None:
    loss, gradient = loss_and_gradient(case, reduction, normalizer=normalizer, **options)
    true_loss, true_gradient, _ = reference(case, reduction, normalizer)
    loss_tolerance, gradient_tolerance = case.tolerances()
    terms = len(case.target) if reduction == "sum" else 1
    torch.testing.assert_close(loss.double(), true_loss, rtol=1e-6, atol=loss_tolerance * terms)
    torch.testing.assert_close(gradient.double(), true_gradient, rtol=0, atol=gradient_tolerance)
    assert gradient.dtype == case.logits.dtype


def eager(logits: Tensor, case: Case) -> Tensor:
    """Compute the loss as users write it in torch, in the logits' dtype; mean over the rows that are not ignored."""
    T, kept = case.temperature, case.target != case.ignore_index
    mean = torch.stack([(teacher / T).softmax(-1) for teacher in case.teachers]).mean(0)
    divergence = F.kl_div((logits / T).log_softmax(-1), mean, reduction="none").sum(-1)
    cross_entropy = F.cross_entropy(logits, case.target, ignore_index=case.ignore_index)
    return cross_entropy + case.distill_weight * T**2 * divergence[kept].mean()


@given(
    cases([1, 2, 3, 127, 1000], DTYPES),
    st.sampled_from(["none", "mean", "sum"]),
    st.sampled_from(IMPLEMENTATIONS),
)
def test_loss_and_gradient_match_the_formula(case: Case, reduction: str, implementation: str) -> None:
    assert_matches_reference(case, reduction, implementation=implementation)


@settings(max_examples=30)
@given(
    st.sampled_from([2, 127, 1000]),
    st.integers(1, 4),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.sampled_from([1.0, 5.0]),
    st.sampled_from([1.0, 2.0]),
)
def test_error_no_larger_than_that_of_torch(
    V: int, N: int, dtype: torch.dtype, scale: float, temperature: float
) -> None:
    case = random_case(rows=8, V=V, N=N, dtype=dtype, temperature=temperature)
    case = replace(case, logits=case.logits * scale, teachers=[teacher * scale for teacher in case.teachers])
    true_loss, true_gradient, _ = reference(case, "mean")
    loss, gradient = loss_and_gradient(case)
    logits = case.logits.detach().requires_grad_()
    torch_loss = eager(logits, case)
    (torch_gradient,) = torch.autograd.grad(torch_loss, logits)

    def worst(value: Tensor, true: Tensor) -> float:
        return (value.double() - true).abs().max().item()

    fast = 6e-6 if dtype != torch.float32 else 0.0  # error of the exponential for 16-bit logits
    assert worst(loss, true_loss) <= worst(torch_loss, true_loss) + 4e-7 * true_loss.item() + fast
    assert worst(gradient, true_gradient) <= worst(torch_gradient, true_gradient) + 1e-7 + fast


@pytest.mark.parametrize("V", [32000, 50257, 128256])
def test_large_vocabularies(V: int) -> None:
    assert_matches_reference(random_case(rows=2, V=V, N=3, dtype=torch.float32, temperature=2.0))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
def test_without_teachers_it_is_cross_entropy(reduction: str, weighted: bool) -> None:
    case = random_case()
    case.target[1] = -100
    class_weight = torch.rand(11) + 0.1 if weighted else None
    options = {"label_smoothing": 0.1, "reduction": reduction}
    expected = F.cross_entropy(
        case.logits, case.target, weight=class_weight.double() if class_weight is not None else None, **options
    )
    for teachers in (None, [], case.logits.new_empty(0, *case.logits.shape)):
        ours = codistillation_loss(case.logits, case.target, teachers, class_weight=class_weight, **options)
        torch.testing.assert_close(ours, expected)


def test_direction_and_scale_of_the_divergence() -> None:
    """KL(mean teacher || student) times distill_weight and T squared; torch's kl_div takes the student first."""
    case = random_case(N=2, temperature=3.0, distill_weight=0.25)
    mean = (case.teachers[0] / 3).softmax(-1) / 2 + (case.teachers[1] / 3).softmax(-1) / 2
    divergence = F.kl_div((case.logits / 3).log_softmax(-1), mean, reduction="batchmean")
    expected = F.cross_entropy(case.logits, case.target) + 0.25 * 9 * divergence
    torch.testing.assert_close(loss_and_gradient(case)[0], expected)


def test_class_weights_do_not_change_the_divergence() -> None:
    case = random_case(rows=3, class_weight=torch.rand(11) + 0.1)
    plain = replace(case, class_weight=None)
    cross_entropy = F.cross_entropy(case.logits, case.target, weight=case.class_weight.double())
    divergence = loss_and_gradient(plain)[0] - F.cross_entropy(case.logits, case.target)
    torch.testing.assert_close(loss_and_gradient(case)[0], cross_entropy + divergence, rtol=1e-13, atol=0)


def test_teacher_weights_are_normalized_and_zero_excludes_a_teacher() -> None:
    case = random_case(N=3)
    broken = [case.teachers[0], torch.full_like(case.logits, torch.nan), case.teachers[2]]
    lse = torch.stack([teacher.logsumexp(-1) for teacher in broken])
    loss = codistillation_loss(case.logits, case.target, broken, teacher_weights=[3, 0, 1], teacher_lse=lse)
    four = [case.teachers[0]] * 3 + [case.teachers[2]]
    torch.testing.assert_close(loss, codistillation_loss(case.logits, case.target, four))


def test_z_loss_scales_the_squared_logsumexp() -> None:
    case = random_case()
    squared = (case.logits.logsumexp(-1) ** 2).mean()
    with_z = loss_and_gradient(replace(case, z_loss=0.3))[0]
    torch.testing.assert_close(with_z, loss_and_gradient(case)[0] + 0.3 * squared)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("as_tensor", [False, True])
def test_losses_of_micro_batches_with_a_normalizer_add_up(dtype: torch.dtype, as_tensor: bool) -> None:
    """Micro-batches have 1 and 4 labels, one of them ignored; the normalizer is the 4 labels of both."""
    case = random_case(rows=5, dtype=dtype)
    case.target[2] = -100
    normalizer = torch.tensor(4) if as_tensor else 4
    parts = []
    for rows in (slice(0, 1), slice(1, 5)):
        teachers = [teacher[rows] for teacher in case.teachers]
        part = replace(case, logits=case.logits[rows], target=case.target[rows], teachers=teachers)
        parts.append(loss_and_gradient(part, normalizer=normalizer))
    loss, gradient = loss_and_gradient(case)
    torch.testing.assert_close(parts[0][0] + parts[1][0], loss)
    torch.testing.assert_close(torch.cat([parts[0][1], parts[1][1]]), gradient)


def test_a_mean_in_float16_keeps_its_small_gradients() -> None:
    """A probability of 1e-5 divided by a thousand rows underflows in float16, unless it is scaled."""
    logits = torch.zeros(1000, 2, dtype=torch.float16)
    logits[:, 1] = -10.0
    logits.requires_grad_()
    codistillation_loss(logits, torch.zeros(1000, dtype=torch.int64)).mul(2.0**15).backward()
    expected = torch.tensor(-10.0).sigmoid() * 2**15 / 1000
    torch.testing.assert_close(logits.grad[:, 1], expected.expand(1000).half())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_parts(reduction: str, implementation: str) -> None:
    case = random_case(temperature=2.0, distill_weight=0.5, z_loss=0.1, class_weight=torch.rand(11) + 0.1)
    case.target[1] = -100
    logits = case.logits.requires_grad_()
    loss, parts = codistillation_loss(
        logits,
        case.target,
        case.teachers,
        reduction=reduction,
        implementation=implementation,
        return_parts=True,
        **case.options(),
    )
    assert not any(part.requires_grad for part in parts)
    _, _, terms = reference(case)
    torch.testing.assert_close(parts.logsumexp, terms[2])
    z = 0.1 * terms[2] ** 2
    if reduction == "mean":
        z = z.sum() / 3
        kept = case.target[case.target != -100]
        torch.testing.assert_close(parts.cross_entropy, terms[0].sum() / case.class_weight[kept].double().sum())
    elif reduction == "sum":
        z = z.sum()
    torch.testing.assert_close(loss, parts.cross_entropy + 0.5 * 4 * parts.divergence + z)


def test_teachers_as_one_tensor_or_a_list_and_any_leading_shape() -> None:
    case = random_case(rows=6, V=5, N=3)
    shaped = case.logits.view(2, 3, 5), case.target.view(2, 3)
    stacked = torch.stack(case.teachers).view(3, 2, 3, 5)
    losses, parts = codistillation_loss(*shaped, stacked, reduction="none", return_parts=True)
    assert [x.shape for x in (losses, *parts)] == [(2, 3)] * 4
    torch.testing.assert_close(losses.view(6), loss_and_gradient(case, "none")[0])
    lse = stacked.logsumexp(-1)
    torch.testing.assert_close(codistillation_loss(*shaped, stacked, reduction="none", teacher_lse=lse), losses)
    one_row = codistillation_loss(case.logits[0], case.target[0], [case.teachers[0][0]], reduction="none")
    assert one_row.shape == ()


def test_strided_logits() -> None:
    case = random_case(rows=7, V=9, N=2)
    strided = replace(
        case,
        logits=case.logits.T.contiguous().T,
        teachers=[torch.stack([teacher, teacher], -1)[..., 0] for teacher in case.teachers],
        target=torch.stack([case.target, case.target], -1)[:, 0],
    )
    torch.testing.assert_close(loss_and_gradient(strided), loss_and_gradient(case))
    expanded = replace(case, logits=case.logits[:1].expand(7, 9))
    copied = replace(case, logits=case.logits[:1].expand(7, 9).contiguous())
    torch.testing.assert_close(loss_and_gradient(expanded), loss_and_gradient(copied))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_ignored_rows_contribute_to_no_term(implementation: str) -> None:
    case = random_case(rows=4, z_loss=0.1)
    case.target[2:] = -100
    case.logits[2:] = torch.nan  # the rows must not be read
    kept = replace(case, logits=case.logits[:2], target=case.target[:2], teachers=[t[:2] for t in case.teachers])
    loss, gradient = loss_and_gradient(case, implementation=implementation)
    torch.testing.assert_close(loss, loss_and_gradient(kept, implementation=implementation)[0])
    assert not gradient[2:].any()


@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_without_rows_the_loss_is_zero_and_not_nan(rows: int, dtype: torch.dtype, reduction: str) -> None:
    for class_weight in (None, torch.rand(11)):
        case = random_case(rows=rows, dtype=dtype, class_weight=class_weight)
        case.target.fill_(-100)
        loss, gradient = loss_and_gradient(case, reduction)
        assert not loss.any()
        assert not gradient.any()
        assert gradient.shape == case.logits.shape


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_class_without_teacher_probability(implementation: str) -> None:
    case = random_case(rows=3, V=6)
    for teacher in case.teachers:
        teacher[:, 4] = -torch.inf
    assert_matches_reference(case, implementation=implementation)
    case.teachers[0][:, 4] = 1.0  # one teacher gives it a probability
    assert_matches_reference(case, implementation=implementation)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_class_ruled_out_by_all_models(implementation: str) -> None:
    """A class masked in student and teachers gives no NaN, no gradient, and the loss of the other classes."""
    case = random_case(rows=3, V=6)
    case.target.clamp_(max=4)
    smaller = replace(case, logits=case.logits[:, :5], teachers=[teacher[:, :5] for teacher in case.teachers])
    for x in (case.logits, *case.teachers):
        x[:, 5] = -torch.inf
    loss, gradient = loss_and_gradient(case, implementation=implementation)
    torch.testing.assert_close(loss, loss_and_gradient(smaller)[0])
    assert not gradient[:, 5].any()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("N", [1, 2])
def test_divergence_from_an_equal_teacher_is_not_negative(N: int, implementation: str) -> None:
    case = random_case(rows=64, V=1000, dtype=torch.float32)
    equal = replace(case, teachers=[case.logits] * N)
    _, parts = codistillation_loss(
        case.logits, case.target, equal.teachers, reduction="none", implementation=implementation, return_parts=True
    )
    assert (parts.divergence >= 0).all()
    torch.testing.assert_close(parts.divergence, torch.zeros(64), rtol=0, atol=2e-6)


def test_with_weight_zero_the_teachers_are_not_read() -> None:
    case = random_case()
    broken = replace(case, distill_weight=0.0, teachers=[torch.full_like(case.logits, torch.nan)], lse_is_given=True)
    torch.testing.assert_close(loss_and_gradient(broken), loss_and_gradient(replace(case, teachers=[])))


def test_inputs_are_not_modified() -> None:
    case = random_case()
    before = case.logits.clone(), [teacher.clone() for teacher in case.teachers]
    loss_and_gradient(case)
    assert torch.equal(case.logits, before[0])
    assert all(map(torch.equal, case.teachers, before[1]))


def test_the_module_equals_the_function() -> None:
    case = random_case(temperature=2.0, label_smoothing=0.1, class_weight=torch.rand(11) + 0.1)
    module = CodistillationLoss(
        distill_weight=0.5, temperature=2.0, label_smoothing=0.1, class_weight=case.class_weight, reduction="sum"
    )
    expected = loss_and_gradient(replace(case, distill_weight=0.5), "sum")[0]
    torch.testing.assert_close(module(case.logits, case.target, case.teachers), expected)
    module.distill_weight = 2.0
    expected = loss_and_gradient(replace(case, distill_weight=2.0), "sum")[0]
    torch.testing.assert_close(module(case.logits, case.target, case.teachers), expected)
    assert module.double().class_weight.dtype == torch.float64
    assert repr(module).startswith("CodistillationLoss(distill_weight=2.0, temperature=2.0")
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'temprature'"):
        CodistillationLoss(temprature=2.0)


Z, Y = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)
LEAF = torch.zeros(2, 3, requires_grad=True)
BAD_INPUT = [
    ((Z.long(), Y), {}, TypeError, r"logits has dtype torch.int64; convert"),
    ((torch.zeros(2, 0), Y), {}, ValueError, r"logits has shape \[2, 0\].*V >= 1"),
    ((torch.tensor(0.0), Y), {}, ValueError, r"logits has shape \[\]"),
    ((Z.to("meta"), Y.to("meta")), {}, ValueError, r"logits is on meta; move it to one of cpu, cuda"),
    ((Z, Y.int()), {}, TypeError, r"target has dtype torch.int32.*target.long\(\)"),
    ((Z, Y[:1]), {}, ValueError, r"target has shape \[1\].*\[2\]"),
    ((Z, Y.to("meta")), {}, ValueError, r"target is on meta; move it"),
    ((Z, Y + 3), {}, ValueError, r"target holds 3; labels lie in \[0, 3\)"),
    ((Z, Y - 1), {}, ValueError, r"target holds -1.*ignore_index \(-100\)"),
    ((Z, Y + 3), {"class_weight": Z[0]}, ValueError, r"target holds 3; labels lie in \[0, 3\)"),
    ((Z, Y, Z), {}, ValueError, r"teacher_logits\[0\] has shape \[3\].*unsqueeze"),
    ((Z, Y, torch.tensor(0.0)), {}, ValueError, r"teacher_logits has no dimensions"),
    ((Z, Y, [Z, None]), {}, TypeError, r"teacher_logits\[1\] is a NoneType"),
    ((Z, Y, [Z.double()]), {}, TypeError, r"teacher_logits\[0\] has dtype torch.float64.*\.to\(torch.float32\)"),
    ((Z, Y, [Z.to("meta")]), {}, ValueError, r"teacher_logits\[0\] is on meta"),
    ((Z, Y, [LEAF]), {}, ValueError, r"teacher_logits\[0\] requires grad.*teacher_logits\[0\].detach\(\)"),
    ((Z, Y), {"distill_weight": -1.0}, ValueError, r"distill_weight is -1.0"),
    ((Z, Y), {"distill_weight": float("nan")}, ValueError, r"distill_weight is nan"),
    ((Z, Y), {"temperature": 0.0}, ValueError, r"temperature is 0.0"),
    ((Z, Y), {"temperature": float("inf")}, ValueError, r"temperature is inf"),
    ((Z, Y), {"label_smoothing": 1.5}, ValueError, r"label_smoothing is 1.5"),
    ((Z, Y), {"z_loss": -1e-4}, ValueError, r"z_loss is -0.0001"),
    ((Z, Y), {"class_weight": torch.ones(2)}, ValueError, r"class_weight is torch.float32 of shape \[2\].*\[3\]"),
    ((Z, Y), {"class_weight": torch.ones(3, dtype=torch.int64)}, ValueError, r"class_weight is torch.int64.*floats"),
    ((Z, Y), {"class_weight": Z[0] - 0.5}, ValueError, r"class_weight holds -0.5"),
    ((Z, Y), {"class_weight": LEAF[0]}, ValueError, r"class_weight requires grad.*class_weight.detach\(\)"),
    ((Z, Y), {"teacher_weights": [1.0]}, ValueError, r"teacher_weights has 1 numbers for 0 teachers"),
    ((Z, Y, [Z, Z]), {"teacher_weights": [0.0, 0.0]}, ValueError, r"teacher_weights is \[0.0, 0.0\].*not all"),
    ((Z, Y, [Z, Z]), {"teacher_weights": [2.0, -1.0]}, ValueError, r"teacher_weights is \[2.0, -1.0\].*>= 0"),
    ((Z, Y, [Z]), {"teacher_lse": torch.zeros(2)}, ValueError, r"teacher_lse has shape \[2\]; 1 teachers.*\[1, 2\]"),
    ((Z, Y), {"teacher_lse": torch.zeros(1, 2)}, ValueError, r"teacher_lse has shape \[1, 2\]; 0 teachers"),
    ((Z, Y, [Z]), {"teacher_lse": torch.zeros(1, 2).double()}, TypeError, r"teacher_lse has dtype torch.float64"),
    ((Z, Y), {"reduction": "batchmean"}, ValueError, r"reduction is 'batchmean'; pass one of none, mean, sum"),
    ((Z, Y), {"reduction": "sum", "normalizer": 3}, ValueError, r"normalizer.*but reduction is 'sum'"),
    ((Z, Y), {"normalizer": 0}, ValueError, r"normalizer is 0"),
    ((Z, Y), {"normalizer": torch.ones(2)}, ValueError, r"normalizer has shape \[2\]"),
    ((Z, Y), {"implementation": "cudnn"}, ValueError, r"implementation is 'cudnn'; pass one of auto, cpu, torch"),
    ((Z, Y), {"implementation": "triton"}, ValueError, r"implementation is 'triton', but logits is on cpu.*'auto'"),
    ((LEAF, Y), {"inplace_grad": True}, ValueError, r"inplace_grad would overwrite logits, which is a leaf"),
    ((LEAF.exp()[:1].expand(2, 3), Y), {"inplace_grad": True}, ValueError, r"inplace_grad.*logits.*strides \[0, 1\]"),
    ((LEAF.exp().T, Y.new_zeros(3)), {"inplace_grad": True}, ValueError, r"inplace_grad.*logits.*strides \[1, 3\]"),
]


@pytest.mark.parametrize(("args", "options", "error", "message"), BAD_INPUT)
def test_bad_input(args: tuple[Tensor, ...], options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        codistillation_loss(*args, **options)


@pytest.mark.launch
def test_the_losses_import_only_torch() -> None:
    program = (
        "import sys, hpcdistill; hpcdistill.codistillation_loss\n"
        "print({'mpi4py', 'horovod', 'h5py', 'pydantic', 'matplotlib', 'triton'} & set(sys.modules) or 'none')"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "none"
