"""Predict the class of an image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hpcdistill.config.schema import DataConfig
from hpcdistill.data.batches import Batch, Batches, Numbers, Share, evenly_spread, require_one_each
from hpcdistill.data.images.batches import Images
from hpcdistill.data.images.store import ImageStore
from hpcdistill.tasks.objective import Softmax
from hpcdistill.tasks.task import Task, TrainingBatches, ValidationBatches

VALIDATION_IMAGES = 10_000
"""At most this many by default, evenly spread over the validation part: the same for every group and every run."""


class ImageTask(Task):
    """Models give logits [batch, K] for float32 images [batch, C, S, S]."""

    unit = "image"

    def __init__(self, store: ImageStore) -> None:
        self.store: ImageStore = store
        self.objective = Softmax(len(store.kind.classes))

    def batches(self, config: DataConfig, share: Share) -> TrainingBatches:
        """See `Task`."""
        images = Images(self.store, config.image_size)

        def read(numbers: Numbers, chance: np.random.Generator) -> Batch:
            pixels, labels = images.train_images(numbers, chance)
            return Batch((pixels,), labels)

        return Batches(self.store.size("train"), read, config.batch_size, share, "images")

    def validation(
        self, config: DataConfig, rank: int = 0, size: int = 1, items: int | None = None
    ) -> ValidationBatches:
        """See `Task`; they are read each time anew, for they are too many to keep."""
        available = self.store.size("validation")
        require_one_each(available, size, f"{self.store.path} holds {available} validation images")
        chosen = evenly_spread(available, items or VALIDATION_IMAGES)[rank::size]
        return _Validation(Images(self.store, config.image_size), chosen, config.batch_size)

    def unigram(self) -> Tensor:
        """See `Task`; float32 [K]. A class without images counts as one that has one."""
        counts = torch.from_numpy(self.store.labels["train"]).bincount(minlength=len(self.store.kind.classes))
        return counts.clamp(min=1).float().log()


@dataclass(frozen=True)
class _Validation:
    """Batches that are read when they are asked for."""

    images: Images
    numbers: Numbers
    batch_size: int

    def __len__(self) -> int:
        return -(-len(self.numbers) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for begin in range(0, len(self.numbers), self.batch_size):
            pixels, labels = self.images.validation_images(self.numbers[begin : begin + self.batch_size])
            yield Batch((pixels,), labels)
