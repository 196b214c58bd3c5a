"""Prediction of the next token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hpcdistill.config.data import DataConfig
from hpcdistill.data.batches import Batch, Share, TrainingBatches
from hpcdistill.data.tokens.batches import sequence_batches, sequence_validation_batches
from hpcdistill.data.tokens.store import TokenStore
from hpcdistill.tasks.linear_objective import FusedSoftmax
from hpcdistill.tasks.objective import Softmax
from hpcdistill.tasks.registry import register
from hpcdistill.tasks.scores import ClassScores
from hpcdistill.tasks.task import Task

READ_TOKENS = 1 << 20  # tokens read at a time


@register(TokenStore)
class LanguageTask(Task):
    """Language modelling: logits [batch, time, V] for int64 tokens [batch, time]."""

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
        """See `Task`; float32 [V]. A token that does not occur is counted once, so that the logit is finite."""
        counts = torch.zeros(self.store.vocabulary, dtype=torch.int64)
        for begin in range(0, self.store.size("train"), READ_TOKENS):
            count = min(READ_TOKENS, self.store.size("train") - begin)
            counts += torch.from_numpy(self.store.read("train", begin, count)).bincount(minlength=len(counts))
        return counts.clamp(min=1).float().log()

    def scores(self) -> ClassScores:
        """See `Task`."""
        return ClassScores(self.objective)

    def fused_objective(self, model: nn.Module) -> FusedSoftmax:
        """See `Task`."""
        return FusedSoftmax(self.store.vocabulary, model, (torch.zeros(1, 2, dtype=torch.int64),))
