"""Teachers that never learn: trained models, or what is known without looking. Baselines of codistillation."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from hpcdistill.config.schema import CodistillConfig
from hpcdistill.data.batches import Batch
from hpcdistill.models.saved import SavedModel
from hpcdistill.tasks.objective import TrainingObjective
from hpcdistill.tasks.task import Task


class FixedTeachers:
    """What `Teachers` is for peers, for the other kinds of `codistill.teachers`.

    With 'checkpoints' it is the second phase of distillation (Hinton et al., arXiv 1503.02531), with 'uniform' and
    'unigram' the two kinds of label smoothing that the paper compares with (Anil et al. 2018, Section 3).

    Args:
        config: which teachers.
        task: what they predict.
        objective: what models put out.
        device: where they do.
        trust: let checkpoints of other users name the code of their models.

    Raises:
        UserError: a checkpoint that cannot be read, or is of a model for other data.
    """

    quarantine: ClassVar[dict[int, str]] = {}

    def __init__(
        self,
        config: CodistillConfig,
        task: Task,
        objective: TrainingObjective[Any],
        device: torch.device,
        trust: bool = False,
    ) -> None:
        self._objective = objective
        self._outputs: list[Any] = []
        self._models = [SavedModel.load(path, trust).build(task.store).to(device) for path in config.checkpoints]
        priors = {"uniform": lambda: objective.uniform, "unigram": task.unigram}
        self._priors = [make().to(device) for kind, make in priors.items() if kind == config.teachers]

    @torch.no_grad()
    def predict(self, batch: Batch) -> None:
        """Let each teacher look at the inputs."""
        models = [self._objective.outputs(model, *batch.inputs) for model in self._models]
        self._outputs = models + [self._objective.constant_prediction(prior, batch.target) for prior in self._priors]

    def outputs(self) -> list[Any]:
        """What `predict` made."""
        outputs, self._outputs = self._outputs, []
        return outputs

    def staleness(self, step: int) -> dict[int, int]:
        """Of no peer."""
        return {}

    def advance(self, step: int) -> None:
        """Nothing to learn; the weight of the loss keeps them silent in the burn-in."""
