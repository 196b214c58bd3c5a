"""The loss in plain torch, on any device: the reference, and the fallback if no kernel is installed."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hpcdistill.kernels.rows import Rows


def run(rows: Rows) -> None:
    """Fill the outputs of `rows`; this needs several temporary tensors of the size of the logits."""
    student = rows.logits.to(rows.losses.dtype)
    ignored = rows.target == rows.ignore_index
    if rows.shard and not rows.shard.is_merged:
        rows.shard.lse.copy_(_logsumexps(rows, student).masked_fill(ignored, 0))
        return
    known_lse, tempered_lse, *teacher_lse = _known_lse(rows)
    out_of_range = (rows.target < 0) | (rows.target >= rows.classes)
    cross_entropy_scale, divergence_scale, lse_scale = rows.scales

    log_p = _log_softmax(student, known_lse)
    lse = student.logsumexp(-1) if known_lse is None else known_lse.to(student.dtype)
    target, target_sum = _smooth_target(rows, rows.target.masked_fill(out_of_range, 0))
    cross_entropy = _sum_where(target != 0, -target * log_p)
    gradient = cross_entropy_scale * (target_sum.unsqueeze(-1) * log_p.exp() - target)
    gradient += 2 * lse_scale * lse.unsqueeze(-1) * log_p.exp()

    divergence = torch.zeros_like(lse)
    if rows.teachers:
        log_q = _log_softmax(student / rows.temperature, tempered_lse)
        log_mean = _log_mean_probability(rows, teacher_lse)
        mean = log_mean.exp()
        divergence = _sum_where(mean != 0, mean * (log_mean - log_q))
        if not rows.shard:  # over all classes only rounding makes it negative
            divergence = divergence.clamp(min=0)
        gradient += divergence_scale * rows.temperature * (log_q.exp() - mean)

    distillation = divergence_scale * rows.temperature**2 * divergence
    losses = cross_entropy_scale * cross_entropy + distillation + lse_scale * lse**2
    per_row = torch.stack([losses, cross_entropy, divergence, lse])
    per_row.masked_fill_(out_of_range, torch.nan).masked_fill_(ignored, 0)
    rows.losses.copy_(per_row[0])
    rows.parts.copy_(per_row[1:])
    if rows.gradient is not None:
        gradient.masked_fill_(out_of_range.unsqueeze(-1), torch.nan).masked_fill_(ignored.unsqueeze(-1), 0)
        rows.gradient.copy_(gradient)


def _logsumexps(rows: Rows, student: Tensor) -> Tensor:
    """Return `lse` of `Shard`, ``[2 + N, rows]``, for the columns of this call."""
    teachers = (teacher.to(student.dtype) for teacher in rows.teachers)
    tempered = (x / rows.temperature for x in (student, *teachers))
    return torch.stack([x.double().logsumexp(-1) for x in (student, *tempered)])


def _known_lse(rows: Rows) -> Sequence[Tensor | None]:
    """Return the known logsumexps over all classes in the order of `Shard.lse`; None for each one to be computed."""
    if rows.shard:
        return list(rows.shard.lse)
    return [None, None, *([None] * len(rows.teachers) if rows.teacher_lse is None else rows.teacher_lse)]


def _log_softmax(x: Tensor, lse: Tensor | None) -> Tensor:
    """Return the log-softmax of the columns of x, given its logsumexp over all classes if that is known."""
    return x.log_softmax(-1) if lse is None else (x - lse.unsqueeze(-1)).to(x.dtype)


def _smooth_target(rows: Rows, label: Tensor) -> tuple[Tensor, Tensor]:
    """Return u of `Rows` for the columns of the call, ``[rows, columns]``, and its sum over all classes, ``[rows]``."""
    weight = rows.losses.new_ones(rows.classes) if rows.class_weight is None else rows.class_weight
    first, columns = rows.shard.first_class if rows.shard else 0, rows.logits.shape[1]
    column = (label - first).unsqueeze(-1)
    smoothing, kept = rows.label_smoothing / rows.classes, 1 - rows.label_smoothing
    is_label = (column == torch.arange(columns, device=label.device)).to(weight.dtype)
    target = (smoothing + kept * is_label) * weight[first : first + columns]
    return target, kept * weight[label] + smoothing * weight.sum()


def _log_mean_probability(rows: Rows, lse: Sequence[Tensor | None]) -> Tensor:
    """Return the log of the teachers' mean probability, ``[rows, V]``; -inf if it is 0."""
    terms = []
    for share, teacher, known_lse in zip(rows.mixture, rows.teachers, lse, strict=True):
        tempered = teacher.to(rows.losses.dtype) / rows.temperature
        log_p = _log_softmax(tempered, known_lse)
        terms.append(log_p + (math.log(share) if share else -math.inf))
    return torch.stack(terms).logsumexp(0)


def _sum_where(counted: Tensor, terms: Tensor) -> Tensor:
    """Return the row sums of the counted terms; the others may be NaN, from 0 * (-inf)."""
    return terms.where(counted, 0).sum(-1)
