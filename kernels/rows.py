"""What every implementation of the fused loss is given: one call, checked and flattened to rows."""

from dataclasses import dataclass

import torch
from torch import Tensor


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of arithmetic and losses for logits of `dtype`: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass(frozen=True)
class Shard:
    """Which of the classes the columns are, where several calls have some of them each.

    Each makes two turns: the first fills `lse` and nothing else. Then the caller merges what the shards have found,
    and the second goes on with that. In it cross_entropy and divergence are sums over these columns, the latter not
    clamped, and `losses` holds nothing of use: the caller puts the shards' sums together.
    """

    first: int
    """The class of the first column."""
    classes: int
    """V, of all shards together."""
    lse: Tensor
    """``[2 + N, rows]``, contiguous: logsumexp of z, of z / T and of every t_j / T. In float64, for at logits of 1e4
    the rounding to float32 would be an error of 5e-4 in each probability."""
    is_merged: bool
    """Whether `lse` is over all classes, and this the second turn."""


@dataclass(frozen=True)
class Rows:
    """One call of the loss. An implementation is a function ``run(rows: Rows) -> None`` that fills the outputs.

    With z a row of `logits`, y its label, V the classes, lse = logsumexp(z), T the `temperature`, and u the
    label-smoothed target ``u_k = class_weight_k * (label_smoothing / V + (1 - label_smoothing) * [k = y])``::

        cross_entropy = sum_k u_k * (lse - z_k)
        divergence    = sum_k m_k * (log m_k - log q_k),  q = softmax(z / T),
                        m = sum_j mixture_j * exp(t_j / T - teacher_lse_j)
        loss          = scales[0] * cross_entropy + scales[1] * T**2 * max(divergence, 0) + scales[2] * lse**2

    and the gradient is the derivative of `loss` by z. Rows whose label is `ignore_index` get zeros everywhere; their
    logits are not read. On a GPU, where nobody has checked the labels, a label out of range makes the row's loss and
    gradient NaN. A class with m_k = 0 adds nothing to the divergence, though its q_k be 0 too. "Real" below is
    `compute_dtype` of the logits' dtype.
    """

    logits: Tensor
    """``[rows, V]``; adjacent columns, any distance between rows."""
    target: Tensor
    """``[rows]``, int64, contiguous."""
    teachers: list[Tensor]
    """N tensors like `logits`, of the same dtype, each with its own distance between rows; N may be 0."""
    mixture: list[float]
    """N shares of the teachers, which sum to 1."""
    teacher_lse: Tensor | None
    """``[N, rows]`` of Real, contiguous: logsumexp(t_j / T), where the caller knows it."""
    class_weight: Tensor | None
    """``[V]`` of Real, contiguous, of all classes; None for ones."""
    scales: Tensor
    """``[3]`` of Real, what the three terms are multiplied by: on the device, so that a weight that changes with the
    step, or a count of labels, need not be known to the host or to a compiler."""
    temperature: float
    label_smoothing: float
    ignore_index: int
    losses: Tensor
    """Output ``[rows]`` of Real."""
    parts: Tensor
    """Output ``[3, rows]`` of Real, contiguous: cross_entropy, divergence (clamped at 0), lse; without their scales."""
    gradient: Tensor | None
    """Output ``[rows, V]`` in the logits' dtype; adjacent columns. May be `logits` itself. None: not wanted."""
    shard: Shard | None = None
    """None: the columns are all classes. Else those of `logits`, `teachers` and `gradient` are a part, and
    `teacher_lse` is None."""

    @property
    def classes(self) -> int:
        """V."""
        return self.logits.shape[1] if self.shard is None else self.shard.classes
