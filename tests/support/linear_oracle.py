"""Reference of the loss of hidden states, from its formula in float64, and test cases."""

# ruff: noqa: N803, N806 - V, D and N are the names in the formula

from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from hypothesis import strategies as st
from torch import Tensor

from hpcdistill import linear_codistillation_loss
from loss_oracle import Case, cases, random_case, reference

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
Weight = Tensor | tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Model:
    """Hidden states and head of a model."""

    hidden: Tensor  # [rows, D]
    weight: Weight  # [V, D], or int8 with [V]
    bias: Tensor | None = None  # [V]

    @property
    def plain_weight(self) -> Tensor:
        """Weight [V, D] in float64."""
        if isinstance(self.weight, Tensor):
            return self.weight.double()
        numbers, scale = self.weight
        return numbers.double() * scale.double().unsqueeze(1)

    @property
    def logits(self) -> Tensor:
        """Logits in float64."""
        return F.linear(self.hidden.double(), self.plain_weight, None if self.bias is None else self.bias.double())

    @property
    def rounding(self) -> float:
        """Bound of the rounding error of the products of which a logit is the sum, in units of the logit's."""
        products = F.linear(self.hidden.double().abs(), self.plain_weight.abs()) * self.hidden.shape[1]
        return max([0.0, *products.flatten().tolist()])


@dataclass(frozen=True)
class Cap:
    """Scale and soft cap of a model's logits."""

    scale: float = 1.0
    softcap: float | None = None

    def logits(self, model: Model) -> Tensor:
        """Return the logits of `model`, scaled and capped, in float64."""
        logits = self.scale * model.logits
        return logits if self.softcap is None else self.softcap * (logits / self.softcap).tanh()

    def derivative(self, logits: Tensor) -> Tensor:
        """Return the derivative of `logits`, which are capped, by those of the head."""
        return self.scale * (torch.ones_like(logits) if self.softcap is None else 1 - (logits / self.softcap) ** 2)

    def rounding(self, model: Model) -> float:
        """Bound the rounding error of a logit of `model`, and that of its derivative, in units of a logit's."""
        if self.softcap is None:
            return self.scale * model.rounding
        largest = max([0.0, *model.logits.abs().flatten().tolist()])
        return self.scale * (model.rounding + largest) * (1 + 1 / self.softcap)


@dataclass(frozen=True)
class LinearCase:
    """Arguments of one call. `case` has the options, and the logits in float64."""

    student: Model
    teachers: list[Model]
    case: Case
    cap: Cap = field(default_factory=Cap)
    teacher_caps: list[Cap] = field(default_factory=list)
    """N, or none if no teacher has one."""
    classes: slice = field(default_factory=lambda: slice(None))
    """Classes whose rows of the heads the call gets."""

    def loss(self, student: Model | None = None, **options: Any) -> Any:
        """Compute the loss under test."""
        student, teachers = student or self.part_of(self.student), list(map(self.part_of, self.teachers))
        if self.teacher_caps:
            options["teacher_logit_scale"] = (cap.scale for cap in self.teacher_caps)
            options["teacher_logit_softcap"] = [cap.softcap for cap in self.teacher_caps]
        names = ("temperature", "label_smoothing", "class_weight", "z_loss", "ignore_index")
        return linear_codistillation_loss(
            student.hidden,
            student.weight,
            self.case.target,
            [teacher.hidden for teacher in teachers],
            [teacher.weight for teacher in teachers],
            linear_bias=student.bias,
            teacher_linear_bias=[teacher.bias for teacher in teachers],
            logit_scale=self.cap.scale,
            logit_softcap=self.cap.softcap,
            distill_weight=self.case.distill_weight,
            teacher_weights=self.case.teacher_weights,
            **{name: getattr(self.case, name) for name in names},
            **options,
        )

    def differentiated(self, factors: float | Tensor = 1.0, **options: Any) -> tuple[Tensor, list[Tensor]]:
        """Return the loss, and the gradients of its sum after multiplication by `factors`."""
        tensors = vars(self.part_of(self.student)).values()
        student = Model(*(x if x is None else x.detach().requires_grad_() for x in tensors))
        loss = self.loss(student, **options)
        return loss.detach(), gradients_of((loss * factors).sum(), student)

    def part_of(self, model: Model) -> Model:
        """Return `model` with the rows of its head for `classes`."""
        weight = model.weight
        part = weight[self.classes] if isinstance(weight, Tensor) else tuple(x[self.classes] for x in weight)
        return Model(model.hidden, part, None if model.bias is None else model.bias[self.classes])

    def reference(
        self, reduction: str = "mean", factors: float | Tensor = 1.0, normalizer: float | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Compute the same in float64."""
        loss, dlogits, _ = reference(self.case, reduction, normalizer)
        dlogits = dlogits * torch.as_tensor(factors, dtype=torch.float64).reshape(-1, 1)
        dlogits = dlogits * self.cap.derivative(self.case.logits)
        mine = dlogits[:, self.classes]
        gradients = [dlogits @ self.student.plain_weight, mine.T @ self.student.hidden.double(), mine.sum(0)]
        return loss, gradients if self.student.bias is not None else gradients[:2]

    def tolerances(self, reduction: str = "mean", normalizer: float | None = None) -> tuple[float, list[Tensor]]:
        """Return the tolerances of a row's loss and of the gradients, from the rounding errors of both."""
        dtype = torch.promote_types(self.student.hidden.dtype, torch.float32)
        rounded = replace(self.case, logits=self.case.logits.to(dtype))
        caps = zip(self.teacher_caps or [Cap()] * len(self.teachers), self.teachers, strict=True)
        growth = 1 + max(cap.rounding(model) for cap, model in [(self.cap, self.student), *caps])
        loss, logit = (growth * tolerance for tolerance in rounded.tolerances())
        logit *= self.cap.scale
        hidden, weight = self.student.hidden.double().abs(), self.student.plain_weight.abs()
        # Each partial sum of the head's gradient is rounded, in every dtype of hidden.
        _, dlogits, _ = reference(self.case, reduction, normalizer)
        dlogits = dlogits * self.cap.derivative(self.case.logits)
        rows = len(dlogits)
        summing = rows * torch.finfo(torch.promote_types(self.student.weight.dtype, torch.float32)).eps / 2
        return loss, [
            logit * weight.sum(0, keepdim=True),
            logit * hidden.sum(0, keepdim=True) + summing * (dlogits.abs().T @ hidden)[self.classes],
            torch.tensor(logit * rows),
        ]


def gradients_of(loss: Tensor, student: Model) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [x for x in vars(student).values() if x is not None]))


@st.composite
def linear_cases(draw: st.DrawFn, classes: list[int]) -> LinearCase:
    """Draw a case with any sizes, dtypes, ignored rows and options."""
    case = draw(cases(classes, [torch.float64], most_rows=7))
    rows, V = case.logits.shape
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([0.3, 3.0]))

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64) * scale

    def model(hidden_dtype: torch.dtype, weight_dtype: torch.dtype, biased: bool) -> Model:
        D = draw(st.sampled_from([1, 3, 20]))
        weight: Weight = random(V, D)
        if weight_dtype == torch.int8:
            weight = (
                torch.randint(-127, 128, (V, D), generator=generator, dtype=torch.int8),
                random(V).abs().float() / 99,
            )
        else:
            weight = weight.to(weight_dtype)
        return Model(random(rows, D).to(hidden_dtype), weight, random(V).to(hidden_dtype) if biased else None)

    some_dtype, yes_or_no = st.sampled_from(DTYPES), st.booleans()
    student = model(draw(some_dtype), draw(some_dtype), draw(yes_or_no))
    teachers = [
        model(draw(some_dtype), draw(st.sampled_from([*DTYPES, torch.int8])), draw(yes_or_no)) for _ in case.teachers
    ]
    caps = st.builds(Cap, st.sampled_from([1.0, 0.25, 2.0]), st.sampled_from([None, 1.0, 30.0]))
    cap, teacher_caps = draw(caps), draw(st.sampled_from([[], [draw(caps) for _ in teachers]]))
    logits = [some.logits(teacher) for some, teacher in zip(teacher_caps or [Cap()] * 5, teachers, strict=False)]
    case = replace(case, logits=cap.logits(student), teachers=logits, lse_is_given=False)
    return LinearCase(student, teachers, case, cap, teacher_caps)


def random_linear_case(
    rows: int = 7,
    V: int = 110,
    D: int = 8,
    N: int = 2,
    dtype: torch.dtype = torch.float32,
    biased: bool = True,
    scale: float = 1.0,
    **options: Any,
) -> LinearCase:
    """Return a fixed case with logits of about `scale`; the teachers' hidden states are wider than the student's."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    student, *teachers = (
        Model(random(rows, D + j), random(V, D + j) * scale / D**0.5, random(V) if biased else None)
        for j in range(N + 1)
    )
    case = random_case(rows, V, 0, **options)
    logits = [teacher.logits for teacher in teachers]
    return LinearCase(student, teachers, replace(case, logits=student.logits, teachers=logits))


def assert_matches_reference(
    case: LinearCase,
    reduction: str = "mean",
    factors: float | Tensor = 1.0,
    normalizer: float | None = None,
    **options: Any,
) -> None:
    loss, gradients = case.differentiated(factors, reduction=reduction, normalizer=normalizer, **options)
    true_loss, true_gradients = case.reference(reduction, factors, normalizer)
    loss_tolerance, tolerances = case.tolerances(reduction, normalizer)
    terms = len(case.case.target) if reduction == "sum" else 1
    torch.testing.assert_close(loss.double(), true_loss, rtol=1e-6, atol=loss_tolerance * terms)
    factor = float(torch.as_tensor(factors).abs().max())
    inputs = [x for x in vars(case.student).values() if x is not None]
    for gradient, true, tolerance, by in zip(gradients, true_gradients, tolerances, inputs, strict=False):
        assert gradient.dtype == by.dtype
        error = (gradient.double() - true).abs()
        rounding = torch.finfo(by.dtype).eps * true.abs() + torch.finfo(by.dtype).tiny
        assert (error <= factor * tolerance + rounding).all()
