"""Task of the data that a user's function returns."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from hpcdistill.config.data import DataConfig
from hpcdistill.data.batches import Share, TrainingBatches
from hpcdistill.data.datasets.batches import DatasetBatches, DatasetValidation
from hpcdistill.data.datasets.factory import FactoryData
from hpcdistill.errors import UserError
from hpcdistill.tasks.linear_objective import FusedSoftmax
from hpcdistill.tasks.objective import Binary, Softmax, TrainingObjective
from hpcdistill.tasks.scores import BinaryScores, ClassScores
from hpcdistill.tasks.task import Task, ValidationBatches


class DatasetTask(Task):
    """Classification of examples or tokens: logits [..., K] with `data.classes`, log odds [...] without it."""

    unit = "target"

    def __init__(self, store: FactoryData) -> None:
        self.store: FactoryData = store
        self.objective = Binary() if store.classes is None else Softmax(store.classes)

    def batches(self, config: DataConfig, share: Share) -> TrainingBatches:
        """See `Task`."""
        return DatasetBatches(self.store, config, share)

    def validation(
        self, config: DataConfig, rank: int = 0, size: int = 1, items: int | None = None
    ) -> ValidationBatches:
        """See `Task`; the examples are read on each pass, as they may not fit in memory."""
        return DatasetValidation(self.store, config, rank, size, items)

    def unigram(self) -> Tensor:
        """See `Task`.

        Raises:
            UserError: always: the whole training data would have to be read.
        """
        raise UserError(
            f"codistill.teachers = 'unigram' needs the frequencies of the classes, which {self.store.setting} does not "
            "tell; use --codistill.teachers=uniform"
        )

    def scores(self) -> ClassScores | BinaryScores:
        """See `Task`."""
        if self.store.classes is None:
            return BinaryScores(bayes_log_loss=float("nan"))
        return ClassScores(self.objective)

    def fused_objective(self, model: nn.Module) -> TrainingObjective[Any]:
        """See `Task`."""
        return super().fused_objective(model) if self.store.classes is None else FusedSoftmax(self.store.classes, model)
