"""The loss written straight from its formula in float64, and the cases it is asked about."""

# ruff: noqa: N803, N806 - V, N and T are the names in the formula

from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """The arguments of one call, as rows."""

    logits: Tensor  # [rows, V]
    target: Tensor  # [rows]
    teachers: list[Tensor]  # N of [rows, V]
    weight: float = 1.0
    temperature: float = 1.0
    label_smoothing: float = 0.0
    ignore_index: int = -100

    def numbers(self) -> dict[str, float]:
        return {
            "weight": self.weight,
            "temperature": self.temperature,
            "label_smoothing": self.label_smoothing,
            "ignore_index": self.ignore_index,
        }

    def tolerances(self) -> tuple[float, float]:
        """Of a loss and of a gradient: the rounding of a log-probability grows with the logits."""
        eps = torch.finfo(torch.float64 if self.logits.dtype == torch.float64 else torch.float32).eps
        every_logit = torch.stack([self.logits, *self.teachers]).double().abs()
        largest = max([1.0, *every_logit[every_logit.isfinite()].tolist()])
        rounding = 4 * eps * largest
        weight = self.weight * self.temperature
        output = 0.0 if self.logits.dtype in (torch.float32, torch.float64) else torch.finfo(self.logits.dtype).eps
        return rounding * (1 + weight * max(1.0, self.temperature)), (rounding + output) * (1 + weight)


def row_losses(case: Case, logits: Tensor) -> Tensor:
    """Losses [rows] of float64 `logits`, which may require grad."""
    rows, V = logits.shape
    smooth = torch.full((rows, V), case.label_smoothing / V, dtype=torch.float64)
    kept = case.target != case.ignore_index
    for row in kept.nonzero():
        smooth[row, case.target[row]] += 1 - case.label_smoothing
    loss = (smooth * (logits.logsumexp(-1, keepdim=True) - logits)).sum(-1)
    if case.teachers and case.weight:
        T = case.temperature
        mean = sum((teacher.double() / T).softmax(-1) for teacher in case.teachers) / len(case.teachers)
        log_q = logits / T - (logits / T).logsumexp(-1, keepdim=True)
        loss = loss + case.weight * T**2 * (torch.xlogy(mean, mean) - mean * log_q).sum(-1)
    return torch.where(kept, loss, 0.0)


def truth(case: Case, reduction: str = "mean") -> tuple[Tensor, Tensor]:
    """The reduced loss and its gradient [rows, V] ("none": the gradient of the sum)."""
    logits = case.logits.detach().double().requires_grad_()
    losses = row_losses(case, logits)
    kept = int((case.target != case.ignore_index).sum())
    loss = losses if reduction == "none" else losses.sum() / (max(kept, 1) if reduction == "mean" else 1)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    return loss.detach(), gradient


@st.composite
def cases(draw: st.DrawFn, classes: list[int], dtypes: list[torch.dtype], most_rows: int = 5) -> Case:
    """Any mixture of sizes, scales (saturated ones too), ignored rows and numbers."""
    V, rows = draw(st.sampled_from(classes)), draw(st.integers(0, most_rows))
    dtype = draw(st.sampled_from(dtypes))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([0.0, 1.0, 30.0, 1e4]))

    def some_logits() -> Tensor:
        noise = torch.randn(rows, V, generator=generator)
        return (noise.sign() * scale if scale >= 30 else noise * scale).to(dtype)

    target = torch.randint(0, V, (rows,), generator=generator)
    ignore_index = draw(st.sampled_from([-100, 0, V - 1]))
    target[torch.rand(rows, generator=generator) < draw(st.sampled_from([0.0, 0.5, 1.0]))] = ignore_index
    return Case(
        some_logits(),
        target,
        [some_logits() for _ in range(draw(st.integers(0, 5)))],
        weight=draw(st.sampled_from([0.0, 0.3, 1.0, 10.0])),
        temperature=draw(st.sampled_from([0.5, 1.0, 4.0])),
        label_smoothing=draw(st.sampled_from([0.0, 0.1, 1.0])),
        ignore_index=ignore_index,
    )


def random_case(rows: int = 4, V: int = 11, N: int = 2, dtype: torch.dtype = torch.float64, **numbers: float) -> Case:
    """A fixed case of ordinary logits."""
    generator = torch.Generator().manual_seed(0)
    logits, *teachers = (torch.randn(rows, V, generator=generator).to(dtype) for _ in range(N + 1))
    case = Case(logits, torch.randint(0, V, (rows,), generator=generator), teachers)
    return replace(case, **numbers)
