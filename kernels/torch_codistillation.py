"""The loss in plain torch, on any device: the reference, and what runs where no kernel does."""

import math

import torch
from torch import Tensor

from hpcdistill.kernels.rows import Rows


def run(rows: Rows) -> None:
    """Fill the outputs of `rows`, by way of several tensors of the logits' size."""
    student = rows.logits.to(rows.losses.dtype)
    ignored = rows.target == rows.ignore_index
    out_of_range = (rows.target < 0) | (rows.target >= student.shape[1])
    cross_entropy_scale, divergence_scale, lse_scale = rows.scales

    log_p = student.log_softmax(-1)
    lse = student.logsumexp(-1)
    wanted = _smooth_target(rows, rows.target.masked_fill(out_of_range, 0))
    cross_entropy = _sum_where(wanted != 0, -wanted * log_p)
    gradient = cross_entropy_scale * (wanted.sum(-1, keepdim=True) * log_p.exp() - wanted)
    gradient += 2 * lse_scale * lse.unsqueeze(-1) * log_p.exp()

    divergence = torch.zeros_like(lse)
    if rows.teachers:
        log_q = (student / rows.temperature).log_softmax(-1)
        log_mean = _log_mean_probability(rows)
        mean = log_mean.exp()
        # A divergence is never negative; its rounding may be.
        divergence = _sum_where(mean != 0, mean * (log_mean - log_q)).clamp(min=0)
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


def _smooth_target(rows: Rows, label: Tensor) -> Tensor:
    """What `Rows` calls u, ``[rows, V]``."""
    smooth = rows.losses.new_full(rows.logits.shape, rows.label_smoothing / rows.logits.shape[1])
    kept = smooth.new_full((len(label), 1), 1 - rows.label_smoothing)
    smooth.scatter_add_(-1, label.unsqueeze(-1), kept)
    return smooth if rows.class_weight is None else smooth * rows.class_weight


def _log_mean_probability(rows: Rows) -> Tensor:
    """Of the teachers' mixture, ``[rows, V]``; -inf for a class that none of them believes in."""
    terms = []
    for j, (share, teacher) in enumerate(zip(rows.mixture, rows.teachers, strict=True)):
        tempered = teacher.to(rows.losses.dtype) / rows.temperature
        log_p = tempered.log_softmax(-1) if rows.teacher_lse is None else tempered - rows.teacher_lse[j].unsqueeze(-1)
        terms.append(log_p + (math.log(share) if share else -math.inf))
    return torch.stack(terms).logsumexp(0)


def _sum_where(counted: Tensor, terms: Tensor) -> Tensor:
    """Row sums of the counted terms: the others may be 0 * (-inf), which is NaN."""
    return terms.where(counted, 0).sum(-1)
