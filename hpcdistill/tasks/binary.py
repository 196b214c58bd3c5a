"""Predict whether there will be a click, or whatever else a label of 0 or 1 says."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcdistill.config.schema import DataConfig
from hpcdistill.data.batches import Batch, Share
from hpcdistill.data.rows.batches import RowBatches, row_validation_batches
from hpcdistill.data.rows.store import RowStore
from hpcdistill.tasks.objective import Binary
from hpcdistill.tasks.task import Task, TrainingBatches

PART_ROWS = 1 << 16  # read at a time


class ClickTask(Task):
    """Models give one logit each, [batch], for float32 [batch, D] and int32 [batch, C]."""

    unit = "row"

    def __init__(self, store: RowStore) -> None:
        self.store: RowStore = store
        self.objective = Binary()

    def batches(self, config: DataConfig, share: Share) -> TrainingBatches:
        """See `Task`."""
        return RowBatches(self.store, config.batch_size, share)

    def validation(self, config: DataConfig, rank: int = 0, size: int = 1, items: int | None = None) -> list[Batch]:
        """See `Task`."""
        return row_validation_batches(self.store, config.batch_size, rank, size, items)

    def unigram(self) -> Tensor:
        """See `Task`; float32 []. Where all labels are equal, as if there were one of the other."""
        rows = self.store.size("train")
        ones = sum(int(self.store.read("train", begin, PART_ROWS).label.sum()) for begin in range(0, rows, PART_ROWS))
        return torch.tensor((max(ones, 1)) / max(rows - ones, 1)).log()
