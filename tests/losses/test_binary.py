from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hpcdistill import binary_codistillation_loss, codistillation_loss

pytestmark = pytest.mark.alone


def two_classes(logits: Tensor) -> Tensor:
    return torch.stack([torch.zeros_like(logits), logits], -1)


@given(
    st.integers(0, 4),
    st.sampled_from([0.0, 1.0, 30.0, 1e4]),
    st.sampled_from([0.0, 0.5, 10.0]),
    st.sampled_from([0.5, 1.0, 4.0]),
    st.sampled_from(["none", "mean", "sum"]),
    st.integers(0, 2**32 - 1),
)
def test_equals_the_loss_of_two_classes(
    teachers: int, scale: float, distill_weight: float, temperature: float, reduction: str, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, *peers = (scale * torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(teachers + 1))
    target = torch.randint(0, 2, (3, 5), generator=generator)
    options: dict[str, Any] = {"distill_weight": distill_weight, "temperature": temperature, "reduction": reduction}
    if teachers > 1:
        options["teacher_weights"] = [1.0, 3.0, 0.0, 2.0][:teachers]
    one, two = student.clone().requires_grad_(), student.clone().requires_grad_()
    loss = binary_codistillation_loss(one, target, peers, **options)
    expected = codistillation_loss(two_classes(two), target, [two_classes(peer) for peer in peers], **options)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    gradients = (torch.autograd.grad(x.sum(), leaf)[0] for x, leaf in ((loss, one), (expected, two)))
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


def test_without_teachers_it_is_binary_cross_entropy_for_soft_labels_too() -> None:
    logits, target = torch.randn(7), torch.rand(7)
    for options in ({}, {"teacher_logits": [torch.full((7,), torch.nan)], "distill_weight": 0.0}):
        loss = binary_codistillation_loss(logits, target, **options)
        torch.testing.assert_close(loss, F.binary_cross_entropy_with_logits(logits, target))


def test_an_outcome_of_probability_zero_adds_nothing() -> None:
    logits = torch.tensor([3.0, -2.0], requires_grad=True)
    sure = torch.tensor([torch.inf, -torch.inf])
    loss = binary_codistillation_loss(logits, torch.tensor([1.0, 0.0]), [sure])
    expected = 2 * F.softplus(torch.tensor([-3.0, -2.0])).mean()
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.isfinite().all()


def test_half_precision_is_computed_in_single() -> None:
    logits, teacher = torch.randn(100).bfloat16(), torch.randn(100).bfloat16()
    target = torch.ones(100)
    loss = binary_codistillation_loss(logits, target, [teacher])
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, binary_codistillation_loss(logits.float(), target, [teacher.float()]))


def test_normalizer_and_empty_batch() -> None:
    logits, target = torch.randn(6), torch.ones(6)
    total = binary_codistillation_loss(logits, target, reduction="sum")
    torch.testing.assert_close(binary_codistillation_loss(logits, target, normalizer=10), total / 10)
    assert binary_codistillation_loss(torch.empty(0), torch.empty(0)) == 0


def test_a_second_derivative_exists() -> None:
    logits = torch.randn(3, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(3, dtype=torch.float64)
    target = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)
    assert torch.autograd.gradgradcheck(lambda z: binary_codistillation_loss(z, target, [teacher]), logits)


Z, Y = torch.zeros(2), torch.zeros(2)
BAD_INPUT = [
    ((Z.long(), Y), {}, TypeError, r"logits has dtype torch.int64"),
    ((Z, Y[:1]), {}, ValueError, r"target has shape \[1\].*\[2\]"),
    ((Z, Y + 2), {}, ValueError, r"target holds 2.0; labels are probabilities in \[0, 1\]"),
    ((Z, Y * torch.nan), {}, ValueError, r"target holds nan"),
    ((Z, Y, [Z[:1]]), {}, ValueError, r"teacher_logits\[0\] has shape \[1\]"),
    ((Z, Y, [Z.double()]), {}, TypeError, r"teacher_logits\[0\] has dtype torch.float64"),
    ((Z, Y, [torch.zeros(2, requires_grad=True)]), {}, ValueError, r"teacher_logits\[0\] requires grad"),
    ((Z, Y, [Z]), {"teacher_weights": [1, 2]}, ValueError, r"teacher_weights has 2 numbers for 1"),
    ((Z, Y), {"distill_weight": -1}, ValueError, r"distill_weight is -1"),
    ((Z, Y), {"temperature": 0}, ValueError, r"temperature is 0"),
    ((Z, Y), {"reduction": "sum", "normalizer": 2}, ValueError, r"normalizer.*reduction is 'sum'"),
]


@pytest.mark.parametrize(("args", "options", "error", "message"), BAD_INPUT)
def test_bad_input(args: tuple[Tensor, ...], options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        binary_codistillation_loss(*args, **options)
