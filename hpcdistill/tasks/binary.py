"""Prediction of a label that is 0 or 1, such as whether an advertisement is clicked."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcdistill.config.data import DataConfig
from hpcdistill.data.batches import Batch, Share, TrainingBatches
from hpcdistill.data.rows.batches import RowBatches, row_validation_batches
from hpcdistill.data.rows.store import RowStore
from hpcdistill.tasks.objective import Binary
from hpcdistill.tasks.registry import register
from hpcdistill.tasks.scores import BinaryScores
from hpcdistill.tasks.task import Task

READ_ROWS = 1 << 16  # rows read at a time


@register(RowStore)
class BinaryTask(Task):
    """Binary classification of rows: one logit each, [batch], for float32 [batch, D] and int32 [batch, C]."""

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
        """See `Task`; float32 []. A label that does not occur is counted once, so that the logit is finite."""
        rows = self.store.size("train")
        ones = sum(int(self.store.read("train", begin, READ_ROWS).label.sum()) for begin in range(0, rows, READ_ROWS))
        return torch.tensor(max(ones, 1) / max(rows - ones, 1)).log()

    def scores(self) -> BinaryScores:
        """See `Task`; the best possible loss is that of the whole validation part."""
        return BinaryScores(self.store.bayes_log_loss("validation"))
