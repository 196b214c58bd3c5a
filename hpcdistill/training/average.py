"""Moving average of a model's weights."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from hpcdistill.models.recurrent import flatten_recurrent


class MovingAverage(AveragedModel):
    """Exponential moving average of a model's parameters and of its buffers that are no integers.

    torch's own update copies a number to the GPU, and the host waits for that in each step.

    Args:
        model: the model; a copy of it holds the average.
        decay: share of the former average in the next one, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, use_buffers=True)
        self._decay = decay
        flatten_recurrent(self)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Add the present values of `model` to the average; the first call copies them."""
        averages = [*self.module.parameters(), *self.module.buffers()]
        values = [*model.parameters(), *model.buffers()]
        pairs = list(zip(averages, values, strict=True))
        is_first = not self.n_averaged  # on the host
        copied = [pair for pair in pairs if is_first or not pair[0].is_floating_point()]
        averaged = [] if is_first else [pair for pair in pairs if pair[0].is_floating_point()]
        if copied:
            torch._foreach_copy_([average for average, _ in copied], [value for _, value in copied])
        if averaged:
            ends = [value for _, value in averaged]
            torch._foreach_lerp_([average for average, _ in averaged], ends, 1 - self._decay)
        self.n_averaged += 1
