"""What the training loop has to know of a kind of data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar, Protocol

from torch import Tensor

from hpcdistill.config.schema import DataConfig
from hpcdistill.data.batches import Batch, Share
from hpcdistill.data.store import StoreFile
from hpcdistill.tasks.objective import Objective


class TrainingBatches(Protocol):
    """An endless iterator over training batches that can go on from any of them."""

    drawn: int
    """Batches drawn so far; set it to go on from there."""

    def __next__(self) -> Batch: ...

    def __iter__(self) -> Iterator[Batch]: ...


class ValidationBatches(Protocol):
    """Validation batches, to be gone through again and again."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...


class Task(ABC):
    """Data of one kind, and what a model of it predicts.

    Attributes:
        store: the data, open.
        objective: how predictions are judged.
        unit: of what there is one prediction each, such as "token".
    """

    store: StoreFile
    objective: Objective
    unit: ClassVar[str]

    @abstractmethod
    def batches(self, config: DataConfig, share: Share) -> TrainingBatches:
        """One rank's training batches.

        Raises:
            UserError: there is less than one batch, or it does not split over the ranks.
        """

    @abstractmethod
    def validation(
        self, config: DataConfig, rank: int = 0, size: int = 1, items: int | None = None
    ) -> ValidationBatches:
        """One rank's share of the validation batches; they are the same items for every group and every run.

        Args:
            config: how the data is cut.
            rank: of this process in its group.
            size: of the group.
            items: how many at most, of all ranks together; None for what is usual for this kind of data.

        Raises:
            UserError: there are fewer items than ranks.
        """

    @abstractmethod
    def unigram(self) -> Tensor:
        """The outputs of a model that knows how frequent each answer is in the training part, and nothing else.

        float32, shaped as the output for one target.
        """
