"""Classification of images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from hpcdistill.config.data import DataConfig
from hpcdistill.data.arrays import Numbers
from hpcdistill.data.batches import Batch, Batches, Share, TrainingBatches, evenly_spread, require_one_each
from hpcdistill.data.images.batches import Images
from hpcdistill.data.images.store import ImageStore
from hpcdistill.tasks.linear_objective import FusedSoftmax
from hpcdistill.tasks.objective import Softmax
from hpcdistill.tasks.registry import register
from hpcdistill.tasks.scores import ClassScores
from hpcdistill.tasks.task import Task, ValidationBatches

VALIDATION_IMAGES = 10_000
"""Default number of validation images, evenly spread over the part: the same for every group and every run."""


@register(ImageStore)
class ImageTask(Task):
    """Image classification: logits [batch, K] for float32 images [batch, C, S, S]."""

    unit = "image"

    def __init__(self, store: ImageStore) -> None:
        self.store: ImageStore = store
        self.objective = Softmax(len(store.kind.classes))

    def batches(self, config: DataConfig, share: Share) -> TrainingBatches:
        """See `Task`."""
        images = Images(self.store, config.image_size)

        def read(numbers: Numbers, rng: np.random.Generator) -> Batch:
            pixels, labels = images.train_images(numbers, rng)
            return Batch((pixels,), labels)

        return Batches(self.store.size("train"), read, config.batch_size, share, "images")

    def validation(
        self, config: DataConfig, rank: int = 0, size: int = 1, items: int | None = None
    ) -> ValidationBatches:
        """See `Task`; the images are read on each pass, as they may not fit in memory."""
        available = self.store.size("validation")
        require_one_each(available, size, f"{self.store.path} holds {available} validation images")
        chosen = evenly_spread(available, items or VALIDATION_IMAGES)[rank::size]
        return _Validation(Images(self.store, config.image_size), chosen, config.batch_size)

    def unigram(self) -> Tensor:
        """See `Task`; float32 [K]. A class without images is counted once, so that the logit is finite."""
        counts = torch.from_numpy(self.store.labels["train"]).bincount(minlength=len(self.store.kind.classes))
        return counts.clamp(min=1).float().log()

    def scores(self) -> ClassScores:
        """See `Task`."""
        return ClassScores(self.objective)

    def fused_objective(self, model: nn.Module) -> FusedSoftmax:
        """See `Task`."""
        return FusedSoftmax(len(self.store.kind.classes), model)


@dataclass(frozen=True)
class _Validation:
    """Validation batches that are read when they are iterated."""

    images: Images
    numbers: Numbers
    batch_size: int

    def __len__(self) -> int:
        return -(-len(self.numbers) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for begin in range(0, len(self.numbers), self.batch_size):
            pixels, labels = self.images.validation_images(self.numbers[begin : begin + self.batch_size])
            yield Batch((pixels,), labels)
