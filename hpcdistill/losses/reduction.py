"""Reduction of the rows' losses: the scale of each term, and the reduced loss and its parts."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hpcdistill.kernels.rows import compute_dtype


class LossParts(NamedTuple):
    """Detached terms of a loss.

    The cross-entropy (label smoothing and class weights included) and the divergence KL(mean teacher || student),
    without the distillation weight and T**2, are reduced as the loss is. The logsumexp of the student's logits is
    ``[...]``.
    """

    cross_entropy: Tensor
    divergence: Tensor
    logsumexp: Tensor


@dataclass(frozen=True)
class Reduction:
    """Reduction of one batch, known before the losses of its rows."""

    kind: str
    """One of `checks.REDUCTIONS`."""
    shares: Tensor
    """``[2]``: factors of a row in the reduced cross-entropy and in the other terms; ones except for "mean"."""
    outer: Tensor | None
    """Factor of the sum of the rows' losses, 0-d; None for 1."""

    @classmethod
    def create(
        cls,
        kind: str,
        labels: Tensor,
        ignore_index: int,
        class_weight: Tensor | None,
        normalizer: float | Tensor | None,
        dtype: torch.dtype,
    ) -> "Reduction":
        """Return the reduction for `labels` ``[rows]`` and gradients of `dtype`; the other arguments are the loss's."""
        shares = torch.ones(2, dtype=compute_dtype(dtype), device=labels.device)
        if kind == "mean":
            shares = _mean_shares(labels, labels != ignore_index, class_weight, normalizer, shares)
        # The gradient of a mean would underflow in float16: there the kernel makes that of the sum, and the backward
        # scales it.
        return cls(kind, shares, shares[1] if dtype == torch.float16 else None)

    def scales(self, distill_weight: float, z_loss: float) -> Tensor:
        """Return the `scales` of `Rows`."""
        cross_entropy, rest = self.shares if self.outer is None else self.shares / self.outer
        return torch.stack([cross_entropy, rest * distill_weight, rest * z_loss])

    def loss(self, total: Tensor) -> Tensor:
        """Return the loss, given the sum of the rows' losses."""
        return total if self.outer is None else total * self.outer

    def parts(self, parts: Tensor, shape: torch.Size) -> LossParts:
        """Return the parts of the loss, given those of the rows ``[3, rows]`` and the shape of the target."""
        cross_entropy, divergence, lse = (part.view(shape) for part in parts)
        if self.kind != "none":
            cross_entropy, divergence = cross_entropy.sum() * self.shares[0], divergence.sum() * self.shares[1]
        return LossParts(cross_entropy, divergence, lse)


def _mean_shares(
    labels: Tensor, kept: Tensor, class_weight: Tensor | None, normalizer: float | Tensor | None, ones: Tensor
) -> Tensor:
    """Return `Reduction.shares` of "mean"; `kept` ``[rows]`` is false for ignored rows."""
    if normalizer is not None:
        return ones / normalizer
    shares = ones / kept.sum().clamp(min=1)
    if class_weight is None:
        return shares
    weights = (class_weight[labels.clamp(0, len(class_weight) - 1)] * kept).sum()
    return torch.stack([torch.where(weights > 0, 1 / weights, 0), shares[1]])
