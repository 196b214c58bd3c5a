"""Predict the next token."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcdistill.config.schema import DataConfig
from hpcdistill.data.batches import Batch, Share
from hpcdistill.data.tokens.batches import sequence_batches, sequence_validation_batches
from hpcdistill.data.tokens.store import TokenStore
from hpcdistill.tasks.objective import Softmax
from hpcdistill.tasks.task import Task, TrainingBatches

PART_TOKENS = 1 << 20  # read at a time


class LanguageTask(Task):
    """Models give logits [batch, time, V] for int64 tokens [batch, time]."""

    unit = "token"

    def __init__(self, store: TokenStore) -> None:
        self.store: TokenStore = store
        self.objective = Softmax(store.vocabulary)

    def batches(self, config: DataConfig, share: Share) -> TrainingBatches:
        """See `Task`."""
        return sequence_batches(self.store, config, share)

    def validation(self, config: DataConfig, rank: int = 0, size: int = 1, items: int | None = None) -> list[Batch]:
        """See `Task`."""
        return sequence_validation_batches(self.store, config, rank, size, items)

    def unigram(self) -> Tensor:
        """See `Task`; float32 [V]. A token that does not occur counts as one that occurs once."""
        counts = torch.zeros(self.store.vocabulary, dtype=torch.int64)
        for begin in range(0, self.store.size("train"), PART_TOKENS):
            count = min(PART_TOKENS, self.store.size("train") - begin)
            counts += torch.from_numpy(self.store.read("train", begin, count)).bincount(minlength=len(counts))
        return counts.clamp(min=1).float().log()
