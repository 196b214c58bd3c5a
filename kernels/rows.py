"""Arguments of an implementation of the fused loss: one call, checked and flattened to rows."""

from dataclasses import dataclass

import torch
from torch import Tensor


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of arithmetic and losses for logits of `dtype`: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass(frozen=True)
class Shard:
    """Range of the classes that the columns of a call hold, if the vocabulary is split into several shards.

    An implementation is called twice for each shard. The first call fills `lse` only. The caller then merges the `lse`
    of all shards, and the second call uses the result. Its cross_entropy and divergence are sums over the columns of
    the shard, and the divergence is not clamped. The caller adds the sums of the shards and computes the losses; the
    contents of `losses` are undefined.
    """

    first_class: int
    """Class of the first column."""
    classes: int
    """Number of classes V of all shards together."""
    lse: Tensor
    """``[2 + N, rows]``, float64, contiguous: logsumexp of z, of z / T and of every t_j / T. At logits of 1e4, rounding
    to float32 would cause an error of 5e-4 in each probability."""
    is_merged: bool
    """True in the second call, where `lse` is over all classes."""


@dataclass(frozen=True)
class Rows:
    """Inputs and outputs of one call of the loss.

    An implementation is a function ``run(rows: Rows) -> None`` that fills the outputs.

    With z a row of `logits`, y its label, V the classes, lse = logsumexp(z), T the `temperature`, and u the
    label-smoothed target ``u_k = class_weight_k * (label_smoothing / V + (1 - label_smoothing) * [k = y])``::

        cross_entropy = sum_k u_k * (lse - z_k)
        divergence    = sum_k m_k * (log m_k - log q_k),  q = softmax(z / T),
                        m = sum_j mixture_j * exp(t_j / T - teacher_lse_j)
        loss          = scales[0] * cross_entropy + scales[1] * T**2 * max(divergence, 0) + scales[2] * lse**2

    and the gradient is the derivative of `loss` by z. All outputs of rows whose label is `ignore_index` are 0, and
    their logits are not read. On a GPU, where labels are not checked before, a label out of range makes the loss and
    the gradient of its row NaN. A class with m_k = 0 adds 0 to the divergence, even if q_k = 0. "Real" below is
    `compute_dtype` of the logits' dtype.
    """

    logits: Tensor
    """``[rows, V]``; adjacent columns, any stride between rows."""
    target: Tensor
    """``[rows]``, int64, contiguous."""
    teachers: list[Tensor]
    """N tensors of the shape and dtype of `logits`, each with its own stride between rows; N may be 0."""
    mixture: list[float]
    """Shares of the N teachers in the mean; they sum to 1."""
    teacher_lse: Tensor | None
    """``[N, rows]`` of Real, contiguous: logsumexp(t_j / T), or None if the implementation is to compute it."""
    class_weight: Tensor | None
    """``[V]`` of Real, contiguous, for all classes (in a shard too); None for ones."""
    scales: Tensor
    """``[3]`` of Real: factors of the three terms. They are on the device: neither the host nor a compiler needs the
    value of a weight that changes with the step, or of a number of labels."""
    temperature: float
    label_smoothing: float
    ignore_index: int
    losses: Tensor
    """Output ``[rows]`` of Real."""
    parts: Tensor
    """Output ``[3, rows]`` of Real, contiguous: cross_entropy, divergence (clamped at 0) and lse, without `scales`."""
    gradient: Tensor | None
    """Output ``[rows, V]``; adjacent columns; None if not wanted. It may be `logits` itself. It has their dtype, or in
    Triton and torch also 16 bits where they have 32."""
    shard: Shard | None = None
    """Classes that the columns of `logits`, `teachers` and `gradient` hold; None for all. In a shard `teacher_lse` is
    None."""

    @property
    def classes(self) -> int:
        """Number of classes V of the whole vocabulary."""
        return self.logits.shape[1] if self.shard is None else self.shard.classes
