"""From the rows' terms to one loss: what they are multiplied by, and how they are put together."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hpcdistill.kernels.rows import compute_dtype


class LossParts(NamedTuple):
    """What a loss is made of, detached.

    The cross-entropy (label smoothing and class weights included) and the divergence KL(mean teacher || student),
    without the distillation weight and T**2, are reduced as the loss is; the logsumexp of the student's logits is
    ``[...]``.
    """

    cross_entropy: Tensor
    divergence: Tensor
    logsumexp: Tensor


@dataclass(frozen=True)
class Reduction:
    """A reduction of one batch, known before the rows' losses are."""

    kind: str
    """One of `loss_arguments.REDUCTIONS`."""
    shares: Tensor
    """``[2]``: what a row has of the reduced cross-entropy, and of the other terms; ones for all but a mean."""
    outer: Tensor | None
    """What the sum of the rows' losses is multiplied by; None for 1."""

    @classmethod
    def of(
        cls,
        kind: str,
        labels: Tensor,
        ignore_index: int,
        class_weight: Tensor | None,
        normalizer: float | Tensor | None,
        dtype: torch.dtype,
    ) -> "Reduction":
        """For `labels` ``[rows]`` and gradients of `dtype`; the other arguments are those of the losses."""
        shares = torch.ones(2, dtype=compute_dtype(dtype), device=labels.device)
        if kind == "mean":
            shares = _mean_shares(labels, labels != ignore_index, class_weight, normalizer, shares)
        # A mean's gradient would underflow in float16: the sum's is made there, and scaled in the backward.
        return cls(kind, shares, shares[1] if dtype == torch.float16 else None)

    def scales(self, weight: float, z_loss: float) -> Tensor:
        """What `Rows` calls so."""
        cross_entropy, rest = self.shares if self.outer is None else self.shares / self.outer
        return torch.stack([cross_entropy, rest * weight, rest * z_loss])

    def loss(self, total: Tensor) -> Tensor:
        """Of the sum of the rows' losses."""
        return total if self.outer is None else total * self.outer

    def parts(self, parts: Tensor, shape: torch.Size) -> LossParts:
        """Of the rows' parts ``[3, rows]``, which belong to a target of this shape."""
        cross_entropy, divergence, lse = (part.view(shape) for part in parts)
        if self.kind != "none":
            cross_entropy, divergence = cross_entropy.sum() * self.shares[0], divergence.sum() * self.shares[1]
        return LossParts(cross_entropy, divergence, lse)


def _mean_shares(
    labels: Tensor, kept: Tensor, class_weight: Tensor | None, normalizer: float | Tensor | None, ones: Tensor
) -> Tensor:
    if normalizer is not None:
        return ones / normalizer
    shares = ones / kept.sum().clamp(min=1)
    if class_weight is None:
        return shares
    weights = (class_weight[labels.clamp(0, len(class_weight) - 1)] * kept).sum()
    return torch.stack([torch.where(weights > 0, 1 / weights, 0), shares[1]])
