"""Model of one constant, which shows mixed snapshots at a glance."""

import torch
from torch import nn


class Constant(nn.Module):
    """Model in which every element, buffers included, is the same number."""

    def __init__(self, elements: int = 1000) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(elements))
        self.register_buffer("counts", torch.zeros(elements // 3, dtype=torch.int64))

    @torch.no_grad()
    def become(self, number: int) -> None:
        self.weights.fill_(number)
        self.counts.fill_(number)
