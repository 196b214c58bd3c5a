"""What trained models say about the validation part of a task's data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hpcdistill.config.schema import DataConfig
from hpcdistill.errors import UserError
from hpcdistill.models.saved import SavedModel
from hpcdistill.tasks.task import Task


def validation_outputs(
    task: Task, checkpoints: Sequence[Path], trust: bool = False
) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Each model's outputs for a validation batch, and its target; batch by batch, so that memory is bounded.

    The batches are those on which training validates without `train.validation_items`, all ranks' together. Models
    predict on the GPU where there is one. The outputs are those that the models make for `task.objective`; the target
    is shaped as that of a `Batch`.

    Raises:
        UserError: a checkpoint that cannot be read or does not fit the data, or models of sequences of several lengths.
    """
    saved = [SavedModel.load(path, trust) for path in checkpoints]
    data = _common_data(saved, task.store.path)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models = [one.build(task.store).to(device) for one in saved]
    for batch in task.validation(data):
        inputs, target = batch.to(device)
        yield [model(*inputs) for model in models], target


def _common_data(saved: Sequence[SavedModel], path: Path) -> DataConfig:
    """How to cut the data at `path`: as the first model saw its own, which must be as the others did."""
    first = saved[0].config.data
    for one in saved:
        if one.config.data.sequence_length != first.sequence_length:
            raise UserError(
                f"{one.path} has learned from sequences of {one.config.data.sequence_length} tokens, {saved[0].path} "
                f"of {first.sequence_length}; look at models of the same data.sequence_length together"
            )
    return first.model_copy(update={"path": path})
