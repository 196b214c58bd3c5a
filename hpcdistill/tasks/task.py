"""Task: the batches, objective and scores of one kind of data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from hpcdistill.config.data import DataConfig
from hpcdistill.data.batches import Batch, Share, TrainingBatches
from hpcdistill.data.store import Store
from hpcdistill.errors import UserError
from hpcdistill.tasks.objective import Objective, TrainingObjective
from hpcdistill.tasks.scores import Scores


class ValidationBatches(Protocol):
    """Validation batches, which can be iterated any number of times."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...


class Task(ABC):
    """Data of one kind, and what a model of it predicts.

    Attributes:
        store: the open data.
        objective: losses and comparisons of the model's outputs.
        unit: name of what has one prediction each, such as "token".
    """

    store: Store
    objective: Objective
    unit: ClassVar[str]

    @abstractmethod
    def batches(self, config: DataConfig, share: Share) -> TrainingBatches:
        """Return one rank's training batches.

        Raises:
            UserError: there is less data than one batch, or a batch does not split evenly over the ranks.
        """

    @abstractmethod
    def validation(
        self, config: DataConfig, rank: int = 0, size: int = 1, items: int | None = None
    ) -> ValidationBatches:
        """Return one rank's share of the validation batches; the items are the same for every group and every run.

        Args:
            config: batch size, sequence length and image size.
            rank: rank of this process in its group.
            size: number of ranks of the group.
            items: maximum number of items of all ranks together; None for the default of this kind of data.

        Raises:
            UserError: there are fewer items than ranks.
        """

    @abstractmethod
    def unigram(self) -> Tensor:
        """Return the logits of the classes' frequencies in the training part, float32, for one target."""

    @abstractmethod
    def scores(self) -> Scores:
        """Return new scores for the predictions of one model."""

    def fused_objective(self, model: nn.Module) -> TrainingObjective[Any]:
        """Return the objective that is fused with the head of `model`.

        Raises:
            UserError: this kind of data has no such objective, or the model has no such head.
        """
        raise UserError(
            f"codistill.fused_linear = true is for models that choose among classes, not for {self.store.KIND}; omit it"
        )
