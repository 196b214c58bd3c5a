"""Reference of the loss, from its formula in float64, and test cases."""

# ruff: noqa: N803, N806 - V, N and T are the names in the formula

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from hpcdistill import codistillation_loss
from hpcdistill.kernels.rows import Rows, Shard, compute_dtype


@dataclass(frozen=True)
class Case:
    """Arguments of one call, as rows."""

    logits: Tensor  # [rows, V]
    target: Tensor  # [rows]
    teachers: list[Tensor]  # N of [rows, V]
    distill_weight: float = 1.0
    temperature: float = 1.0
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    ignore_index: int = -100
    teacher_weights: list[float] | None = None
    class_weight: Tensor | None = None  # [V]
    lse_is_given: bool = False

    @property
    def mixture(self) -> list[float]:
        shares = self.teacher_weights or [1.0] * len(self.teachers)
        return [share / sum(shares) for share in shares]

    @property
    def teacher_lse(self) -> Tensor | None:
        if not self.lse_is_given or not self.teachers:
            return None
        lse = torch.stack([(teacher.double() / self.temperature).logsumexp(-1) for teacher in self.teachers])
        return lse.to(compute_dtype(self.logits.dtype))

    def options(self) -> dict[str, Any]:
        """Return all arguments but the rows' tensors, by their names in the public function."""
        names = ("distill_weight", "temperature", "label_smoothing", "z_loss", "ignore_index", "teacher_weights")
        tensors = {"class_weight": self.class_weight, "teacher_lse": self.teacher_lse}
        return {name: getattr(self, name) for name in names} | tensors

    def rows(self, scales: tuple[float, float] = (1.0, 1.0)) -> Rows:
        """Return the argument of an implementation. Its outputs are NaN, so that a missing write is detected."""
        real = compute_dtype(self.logits.dtype)
        scale = torch.tensor([scales[0], scales[1] * self.distill_weight, scales[1] * self.z_loss], dtype=real)
        count = self.target.new_full((len(self.target),), torch.nan, dtype=real)
        return Rows(
            self.logits,
            self.target,
            self.teachers,
            self.mixture,
            self.teacher_lse,
            None if self.class_weight is None else self.class_weight.to(real),
            scale.to(self.logits.device),
            self.temperature,
            self.label_smoothing,
            self.ignore_index,
            losses=count,
            parts=torch.stack([count] * 3),
            gradient=torch.full_like(self.logits, torch.nan, memory_format=torch.contiguous_format),
        )

    def tolerances(self) -> tuple[float, float]:
        """Return the tolerances of a loss and of a gradient; rounding errors grow with the logits."""
        eps = torch.finfo(compute_dtype(self.logits.dtype)).eps
        every_logit = torch.stack([self.logits, *self.teachers]).double().abs()
        largest = max([1.0, *every_logit[every_logit.isfinite()].tolist()])
        rounding = 4 * eps * largest
        classes = 1.0 if self.class_weight is None else max(1.0, float(self.class_weight.max()))
        scale = classes + self.distill_weight * max(1.0, self.temperature) ** 2 + 2 * self.z_loss * largest
        loss, gradient = 10 * rounding, rounding
        if self.logits.dtype in (torch.bfloat16, torch.float16):
            # A quotient of two exponentials, 3e-6 each, and half a unit in the last place of the largest gradient.
            loss, gradient = loss + 6e-6, gradient + 6e-6 + torch.finfo(self.logits.dtype).eps / 2
        return loss * scale, gradient * scale


def row_terms(case: Case, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return cross-entropy, divergence and logsumexp, each [rows], of float64 `logits`, which may require grad."""
    rows, V = logits.shape
    T = case.temperature
    class_weight = torch.ones(V, dtype=torch.float64) if case.class_weight is None else case.class_weight.double()
    smooth = torch.full((rows, V), case.label_smoothing / V, dtype=torch.float64)
    kept = case.target != case.ignore_index
    for row in kept.nonzero():
        smooth[row, case.target[row]] += 1 - case.label_smoothing
    lse = logits.logsumexp(-1)
    target = smooth * class_weight
    # A class whose target is 0 adds 0, even if its logit is -inf.
    cross_entropy = torch.where(target > 0, target * (lse.unsqueeze(-1) - logits), 0.0).sum(-1)
    divergence = torch.zeros(rows, dtype=torch.float64)
    if case.teachers and case.distill_weight:
        mean = torch.zeros_like(logits)
        for j, (share, teacher) in enumerate(zip(case.mixture, case.teachers, strict=True)):
            tempered = teacher.double() / T
            # A logsumexp that is passed is used with its rounding.
            norm = tempered.logsumexp(-1) if case.teacher_lse is None else case.teacher_lse[j].double()
            mean = mean + share * (tempered - norm.unsqueeze(-1)).exp()
        log_q = logits / T - (logits / T).logsumexp(-1, keepdim=True)
        divergence = torch.where(mean > 0, torch.xlogy(mean, mean) - mean * log_q, 0.0).sum(-1)
    return tuple(torch.where(kept, term, 0.0) for term in (cross_entropy, divergence, lse))


def reference(
    case: Case, reduction: str = "none", normalizer: float | None = None
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Return the reduced loss, its gradient [rows, V] ("none": that of the sum), and its terms [rows]."""
    logits = case.logits.detach().double().requires_grad_()
    cross_entropy, divergence, lse = terms = row_terms(case, logits)
    rest = case.distill_weight * case.temperature**2 * divergence + case.z_loss * lse**2
    if reduction == "mean":
        kept = case.target[case.target != case.ignore_index]
        weights = len(kept) if case.class_weight is None else case.class_weight.double()[kept].sum()
        loss = cross_entropy.sum() / (normalizer or weights or 1) + rest.sum() / (normalizer or max(len(kept), 1))
    else:
        loss = cross_entropy + rest
        loss = loss.sum() if reduction == "sum" else loss
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    return loss.detach(), gradient, tuple(term.detach() for term in terms)


def on(rows: Rows, device: str) -> Rows:
    """Return `rows` with all tensors on `device`, with their strides; a tensor in two fields stays one tensor."""
    moved: dict[int, Tensor] = {}

    def move(value: Any) -> Any:
        if isinstance(value, list):
            return [move(element) for element in value]
        if not isinstance(value, Tensor) or value.device.type == device:
            return value
        if id(value) not in moved:
            there = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
            moved[id(value)] = there.copy_(value)
        return moved[id(value)]

    return Rows(*(move(getattr(rows, field.name)) for field in fields(Rows)))


def assert_matches_reference(case: Case, rows: Rows) -> None:
    """Check the outputs of `rows`, which an implementation has filled; they are those of `case` with scales of 1."""
    loss, gradient, terms = reference(case)
    loss_tolerance, gradient_tolerance = case.tolerances()
    torch.testing.assert_close(rows.losses.double(), loss, rtol=1e-6, atol=loss_tolerance)
    torch.testing.assert_close(rows.parts.double(), torch.stack(terms), rtol=1e-6, atol=loss_tolerance)
    assert rows.gradient is not None
    torch.testing.assert_close(rows.gradient.double(), gradient, rtol=0, atol=gradient_tolerance)


def shard_cuts() -> st.SearchStrategy[list[float]]:
    """Draw the boundaries of shards, as fractions of the vocabulary."""
    return st.lists(st.floats(0, 1), min_size=1, max_size=3)


def assert_shards_match_reference(
    case: Case, cuts: list[float], run: Callable[[Rows], None], device: str = "cpu"
) -> None:
    """Check an implementation that is called separately for the classes between each two of `cuts`."""
    case = replace(case, lse_is_given=False)
    rows = on(case.rows(), device)
    edges = sorted({0, *(int(cut * rows.classes) for cut in cuts), rows.classes})
    shards = [_shard(rows, slice(*edge)) for edge in pairwise(edges)]
    for shard in shards:
        run(shard)
    lse = torch.stack([shard.shard.lse for shard in shards]).logsumexp(0)
    shards = [replace(shard, shard=replace(shard.shard, lse=lse, is_merged=True)) for shard in shards]
    for shard in shards:
        run(shard)
    cross_entropies, divergences, lses = torch.stack([shard.parts for shard in shards]).unbind(1)
    torch.testing.assert_close(lses, lses[:1].expand_as(lses), rtol=0, atol=0)
    parts = torch.stack([cross_entropies.sum(0), divergences.sum(0).clamp(min=0), lses[0]])
    terms = torch.stack([parts[0], case.temperature**2 * parts[1], parts[2] ** 2])
    gradient = torch.cat([shard.gradient for shard in shards], 1)
    assert_matches_reference(case, on(replace(rows, losses=rows.scales @ terms, parts=parts, gradient=gradient), "cpu"))


def _shard(rows: Rows, classes: slice) -> Rows:
    """Return the first call of a shard."""
    lse = rows.losses.new_full((2 + len(rows.teachers), len(rows.losses)), torch.nan, dtype=torch.float64)
    return replace(
        rows,
        logits=rows.logits[:, classes],
        teachers=[teacher[:, classes] for teacher in rows.teachers],
        teacher_lse=None,
        losses=rows.losses.clone(),
        parts=rows.parts.clone(),
        gradient=rows.gradient[:, classes].clone(memory_format=torch.contiguous_format),
        shard=Shard(classes.start, rows.classes, lse, is_merged=False),
    )


def loss_and_gradient(case: Case, reduction: str = "mean", **options: Any) -> tuple[Tensor, Tensor]:
    logits = case.logits.detach().requires_grad_()
    loss = codistillation_loss(logits, case.target, case.teachers, reduction=reduction, **case.options(), **options)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    return loss.detach(), gradient


@st.composite
def cases(draw: st.DrawFn, classes: list[int], dtypes: list[torch.dtype], most_rows: int = 5) -> Case:
    """Draw a case with any sizes, scales (saturated ones too), strides, ignored rows and options."""
    V, rows = draw(st.sampled_from(classes)), draw(st.integers(0, most_rows))
    N = draw(st.integers(0, 5))
    dtype = draw(st.sampled_from(dtypes))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([0.0, 1.0, 30.0, 1e4]))
    gap = draw(st.sampled_from([0, 3]))  # columns between the end of a row and the next

    def some_logits() -> Tensor:
        noise = torch.randn(rows, V + gap, generator=generator)
        return (noise.sign() * scale if scale >= 30 else noise * scale).to(dtype)[:, :V]

    target = torch.randint(0, V, (rows,), generator=generator)
    ignore_index = draw(st.sampled_from([-100, 0, V - 1]))
    target[torch.rand(rows, generator=generator) < draw(st.sampled_from([0.0, 0.5, 1.0]))] = ignore_index
    return Case(
        some_logits(),
        target,
        [some_logits() for _ in range(N)],
        distill_weight=draw(st.sampled_from([0.3, 1.0, 10.0])),
        temperature=draw(st.sampled_from([0.5, 1.0, 4.0])),
        label_smoothing=draw(st.sampled_from([0.0, 0.1, 1.0])),
        z_loss=draw(st.sampled_from([0.0, 1e-4])),
        ignore_index=ignore_index,
        teacher_weights=draw(st.sampled_from([None, [1.0, 0.0, 2.0, 0.5, 3.0][:N]])) if N else None,
        class_weight=draw(st.sampled_from([None, torch.rand(V, generator=generator) + 0.1])),
        lse_is_given=draw(st.booleans()),
    )


def random_case(rows: int = 4, V: int = 11, N: int = 2, dtype: torch.dtype = torch.float64, **options: Any) -> Case:
    """Return a fixed case with ordinary logits."""
    generator = torch.Generator().manual_seed(0)
    logits, *teachers = (torch.randn(rows, V, generator=generator).to(dtype) for _ in range(N + 1))
    case = Case(logits, torch.randint(0, V, (rows,), generator=generator), teachers)
    return replace(case, **options)
