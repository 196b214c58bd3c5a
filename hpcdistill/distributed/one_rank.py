"""The gradient backend of a group of one rank, which averages nothing."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import nn

from hpcdistill.losses.vocab_parallel import VocabParallel

Model = TypeVar("Model", bound=nn.Module)
Optimizer = TypeVar("Optimizer", bound=torch.optim.Optimizer)


class OneRank:
    """Gradient backend that leaves models and gradients as they are; see `GradientBackend`."""

    def distribute(self, model: Model, optimizer: Optimizer, micro_batches: int) -> tuple[Model, Optimizer]:
        """Return `model` and `optimizer`."""
        return model, optimizer

    def averaged_gradients(self, optimizer: torch.optim.Optimizer) -> AbstractContextManager[None]:
        """Return a context that does nothing."""
        return nullcontext()

    def vocab_parallel(self, classes: int) -> VocabParallel:
        """Return the place of a head's only part."""
        return VocabParallel(0, classes, all_gather=lambda tensor: tensor[None], all_reduce=lambda _: None)
