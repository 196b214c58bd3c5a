"""Predictions of trained models for validation data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hpcdistill.config.data import DataConfig
from hpcdistill.errors import UserError
from hpcdistill.models.saved import SavedModel
from hpcdistill.tasks.task import Task


def validation_outputs(
    task: Task, checkpoints: Sequence[Path], trust: bool = False
) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Yield each model's outputs for a validation batch, and the target, one batch at a time.

    The batches are those on which training validates without `train.validation_items`, all ranks' together. Models run
    on the GPU if there is one.

    Args:
        task: the open task; its validation part is read.
        checkpoints: files of the models.
        trust: let checkpoints of other users name the code of their models.

    Yields:
        The outputs in the order of `checkpoints`, as `task.objective` takes them; and the target, shaped as that of a
        `Batch`.

    Raises:
        UserError: a checkpoint cannot be read or does not fit the data, or the models' sequence lengths differ.
    """
    saved = [SavedModel.load(path, trust) for path in checkpoints]
    data = _common_data(saved)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models = [one.build(task.store).to(device) for one in saved]
    for on_host in task.validation(data):
        batch = on_host.to(device)
        outputs = [task.objective.outputs(model, *batch.inputs, **batch.named) for model in models]
        yield outputs, batch.target


def _common_data(saved: Sequence[SavedModel]) -> DataConfig:
    """Return the data section of the first model's configuration; all must agree on the sequence length."""
    first = saved[0].config.data
    for one in saved:
        if one.config.data.sequence_length != first.sequence_length:
            raise UserError(
                f"{one.path} was trained on sequences of {one.config.data.sequence_length} tokens, {saved[0].path} "
                f"on sequences of {first.sequence_length} tokens; compare models of the same data.sequence_length"
            )
    return first
