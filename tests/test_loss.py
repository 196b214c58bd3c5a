# ruff: noqa: N803 - V is the name in the formula

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from hypothesis import given
from hypothesis import strategies as st
from loss_oracle import Case, cases, random_case, truth
from torch import Tensor

from hpcdistill import codistillation_loss

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def loss_and_gradient(case: Case, reduction: str = "mean") -> tuple[Tensor, Tensor]:
    logits = case.logits.detach().requires_grad_()
    loss = codistillation_loss(logits, case.target, case.teachers, reduction=reduction, **case.numbers())
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    return loss.detach(), gradient


def assert_true(case: Case, reduction: str = "mean") -> None:
    loss, gradient = loss_and_gradient(case, reduction)
    true_loss, true_gradient = truth(case, reduction)
    loss_tolerance, gradient_tolerance = case.tolerances()
    torch.testing.assert_close(loss.double(), true_loss, rtol=1e-6, atol=loss_tolerance * 10)
    torch.testing.assert_close(gradient.double(), true_gradient, rtol=0, atol=gradient_tolerance)
    assert gradient.dtype == case.logits.dtype


@given(cases([1, 2, 3, 127, 1000], DTYPES), st.sampled_from(["none", "mean"]))
def test_loss_and_gradient_are_those_of_the_formula(case: Case, reduction: str) -> None:
    assert_true(case, reduction)


@pytest.mark.parametrize("V", [32000, 50257, 128256])
def test_large_vocabularies(V: int) -> None:
    assert_true(random_case(rows=2, V=V, N=3, dtype=torch.float32, temperature=2.0))


def test_gradcheck() -> None:
    case = random_case(temperature=2.0, weight=0.7, label_smoothing=0.1)
    case.target[1] = -100

    def loss(logits: Tensor) -> Tensor:
        return codistillation_loss(logits, case.target, case.teachers, reduction="none", **case.numbers())

    assert torch.autograd.gradcheck(loss, case.logits.requires_grad_())


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_without_teachers_it_is_cross_entropy(reduction: str) -> None:
    case = random_case()
    expected = F.cross_entropy(case.logits, case.target, label_smoothing=0.1, reduction=reduction)
    for teachers in (None, [], case.logits.new_empty(0, *case.logits.shape)):
        ours = codistillation_loss(case.logits, case.target, teachers, label_smoothing=0.1, reduction=reduction)
        torch.testing.assert_close(ours, expected)


def test_direction_and_scale_of_the_divergence() -> None:
    """KL(mean teacher || student) times weight and T squared; torch's kl_div takes the student first."""
    case = random_case(N=2, temperature=3.0, weight=0.25)
    mean = (case.teachers[0] / 3).softmax(-1) / 2 + (case.teachers[1] / 3).softmax(-1) / 2
    divergence = F.kl_div((case.logits / 3).log_softmax(-1), mean, reduction="batchmean")
    expected = F.cross_entropy(case.logits, case.target) + 0.25 * 9 * divergence
    torch.testing.assert_close(loss_and_gradient(case)[0], expected)


def test_teachers_as_one_tensor_or_a_list_and_any_leading_shape() -> None:
    case = random_case(rows=6, V=5, N=3)
    shaped = case.logits.view(2, 3, 5), case.target.view(2, 3)
    stacked = torch.stack(case.teachers).view(3, 2, 3, 5)
    losses = codistillation_loss(*shaped, stacked, reduction="none")
    assert losses.shape == (2, 3)
    torch.testing.assert_close(losses.view(6), loss_and_gradient(case, "none")[0])
    one_row = codistillation_loss(case.logits[0], case.target[0], [case.teachers[0][0]], reduction="none")
    assert one_row.shape == ()


def test_strided_logits() -> None:
    case = random_case(rows=7, V=9, N=2)
    strided = replace(
        case,
        logits=case.logits.T.contiguous().T,
        teachers=[torch.stack([teacher, teacher], -1)[..., 0] for teacher in case.teachers],
    )
    torch.testing.assert_close(loss_and_gradient(strided), loss_and_gradient(case))


def test_ignored_rows_have_no_share_in_either_term() -> None:
    case = random_case(rows=4)
    case.target[2:] = -100
    case.logits[2:] = torch.nan  # and are not even looked at
    kept = replace(case, logits=case.logits[:2], target=case.target[:2], teachers=[t[:2] for t in case.teachers])
    loss, gradient = loss_and_gradient(case)
    torch.testing.assert_close(loss, loss_and_gradient(kept)[0])
    assert not gradient[2:].any()


@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_nothing_to_learn_from_is_zero_and_not_nan(rows: int, reduction: str) -> None:
    case = random_case(rows=rows)
    case.target.fill_(-100)
    loss, gradient = loss_and_gradient(case, reduction)
    assert torch.equal(loss, torch.zeros(rows if reduction == "none" else ()).double())
    assert torch.equal(gradient, torch.zeros_like(case.logits))


def test_a_class_no_teacher_believes_in() -> None:
    case = random_case(rows=3, V=6)
    for teacher in case.teachers:
        teacher[:, 4] = -torch.inf
    assert_true(case)
    case.teachers[0][:, 4] = 1.0  # one that does, after all
    assert_true(case)


def test_a_class_ruled_out_for_all() -> None:
    """Masked out of student and teachers alike: no NaN, no gradient, the same loss as without the class."""
    case = random_case(rows=3, V=6)
    case.target.clamp_(max=4)
    smaller = replace(case, logits=case.logits[:, :5], teachers=[teacher[:, :5] for teacher in case.teachers])
    for x in (case.logits, *case.teachers):
        x[:, 5] = -torch.inf
    loss, gradient = loss_and_gradient(case)
    torch.testing.assert_close(loss, loss_and_gradient(smaller)[0])
    assert not gradient[:, 5].any()


def test_divergence_from_an_equal_teacher_is_not_negative() -> None:
    case = random_case(rows=64, V=1000, N=1, dtype=torch.float32)
    equal = replace(case, teachers=[case.logits])
    plain = loss_and_gradient(replace(case, teachers=[]), "none")[0]
    distilled = loss_and_gradient(equal, "none")[0]
    assert (distilled >= plain).all()
    torch.testing.assert_close(distilled, plain)


def test_zero_weight_does_not_look_at_the_teachers() -> None:
    case = random_case()
    broken = replace(case, weight=0.0, teachers=[torch.full_like(case.logits, torch.nan)])
    torch.testing.assert_close(loss_and_gradient(broken), loss_and_gradient(replace(case, teachers=[])))


def test_inputs_are_left_as_they_were() -> None:
    case = random_case()
    before = case.logits.clone(), [teacher.clone() for teacher in case.teachers]
    loss_and_gradient(case)
    assert torch.equal(case.logits, before[0])
    assert all(map(torch.equal, case.teachers, before[1]))


def test_no_second_derivative() -> None:
    case = random_case()
    logits = case.logits.requires_grad_()
    with pytest.raises(RuntimeError, match=r"no second derivative.*create_graph"):
        torch.autograd.grad(codistillation_loss(logits, case.target), logits, create_graph=True)


Z, Y = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)
BAD_INPUT = [
    ((Z.long(), Y), {}, TypeError, r"logits has dtype torch.int64; convert"),
    ((torch.zeros(2, 0), Y), {}, ValueError, r"logits has shape \[2, 0\].*V >= 1"),
    ((torch.tensor(0.0), Y), {}, ValueError, r"logits has shape \[\]"),
    ((Z, Y.int()), {}, TypeError, r"target has dtype torch.int32.*target.long\(\)"),
    ((Z, Y[:1]), {}, ValueError, r"target has shape \[1\].*\[2\]"),
    ((Z, Y.to("meta")), {}, ValueError, r"target is on meta; move it"),
    ((Z, Y + 3), {}, ValueError, r"target holds 3; labels lie in \[0, 3\)"),
    ((Z, Y - 1), {}, ValueError, r"target holds -1.*ignore_index \(-100\)"),
    ((Z, Y, Z), {}, ValueError, r"teacher_logits\[0\] has shape \[3\].*unsqueeze"),
    ((Z, Y, torch.tensor(0.0)), {}, ValueError, r"teacher_logits has no dimensions"),
    ((Z, Y, [Z, None]), {}, TypeError, r"teacher_logits\[1\] is a NoneType"),
    ((Z, Y, [Z.double()]), {}, TypeError, r"teacher_logits\[0\] has dtype torch.float64.*\.to\(torch.float32\)"),
    ((Z, Y, [Z.to("meta")]), {}, ValueError, r"teacher_logits\[0\] is on meta"),
    ((Z, Y, [Z.clone().requires_grad_()]), {}, ValueError, r"teacher_logits\[0\].detach\(\)"),
    ((Z, Y), {"weight": -1.0}, ValueError, r"weight is -1.0"),
    ((Z, Y), {"weight": float("nan")}, ValueError, r"weight is nan"),
    ((Z, Y), {"temperature": 0.0}, ValueError, r"temperature is 0.0"),
    ((Z, Y), {"temperature": float("inf")}, ValueError, r"temperature is inf"),
    ((Z, Y), {"label_smoothing": 1.5}, ValueError, r"label_smoothing is 1.5"),
    ((Z, Y), {"reduction": "batchmean"}, ValueError, r"reduction is 'batchmean'; pass one of none, mean, sum"),
]


@pytest.mark.parametrize(("args", "numbers", "error", "message"), BAD_INPUT)
def test_bad_input(args: tuple[Tensor, ...], numbers: dict[str, float], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        codistillation_loss(*args, **numbers)


@pytest.mark.launch
def test_door_1_needs_torch_alone() -> None:
    program = (
        "import sys, hpcdistill; hpcdistill.codistillation_loss\n"
        "print({'mpi4py', 'horovod', 'h5py', 'pydantic', 'matplotlib', 'triton'} & set(sys.modules) or 'none')"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "none"
