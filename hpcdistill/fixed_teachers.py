"""Teachers that never learn: trained models, or what is known without looking. Baselines of codistillation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import torch
from torch import nn

from hpcdistill.config import CodistillConfig
from hpcdistill.data.batches import Batch
from hpcdistill.saved_model import SavedModel
from hpcdistill.tasks.task import Task


class FixedTeachers:
    """What `Teachers` is for peers, for the other kinds of `codistill.teachers`.

    With 'checkpoints' it is the second phase of distillation (Hinton et al., arXiv 1503.02531), with 'uniform' and
    'unigram' the two kinds of label smoothing that the paper compares with (Anil et al. 2018, Section 3.3.2).

    Args:
        config: which teachers.
        task: what they predict.
        device: where they do.

    Raises:
        UserError: a checkpoint that cannot be read, or is of a model for other data.
    """

    quarantine: ClassVar[dict[int, str]] = {}

    def __init__(self, config: CodistillConfig, task: Task, device: torch.device) -> None:
        self._logits: list[torch.Tensor] = []
        self._teachers: list[Callable[[Batch], torch.Tensor]]
        if config.teachers == "checkpoints":
            self._teachers = [
                partial(_ask, SavedModel.load(path).build(task.store).to(device)) for path in config.checkpoints
            ]
        else:
            prior = task.unigram() if config.teachers == "unigram" else task.objective.uniform
            self._teachers = [partial(_repeat, prior.to(device))]

    @torch.no_grad()
    def predict(self, batch: Batch) -> None:
        """Let each teacher look at the inputs."""
        self._logits = [teacher(batch) for teacher in self._teachers]

    def logits(self) -> list[torch.Tensor]:
        """What `predict` made."""
        logits, self._logits = self._logits, []
        return logits

    def staleness(self, step: int) -> dict[int, int]:
        """Of no peer."""
        return {}

    def advance(self, step: int) -> None:
        """Nothing to learn; the weight of the loss keeps them silent in the burn-in."""


def _ask(model: nn.Module, batch: Batch) -> torch.Tensor:
    outputs: torch.Tensor = model(*batch.inputs)
    return outputs


def _repeat(prior: torch.Tensor, batch: Batch) -> torch.Tensor:
    return prior.expand(*batch.target.shape, *prior.shape)
