"""Predictions of trained models for validation data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hpcdistill.config.data import DataConfig
from hpcdistill.errors import UserError
from hpcdistill.models.saved import SavedModel
from hpcdistill.tasks.registry import open_data, open_task
from hpcdistill.tasks.task import Task


def open_validation_data(saved: Sequence[SavedModel], path: Path | None) -> Task:
    """Open the store at `path`; without a path, the data that the models were trained on.

    Raises:
        UserError: the store cannot be read; the models were trained on different data; or a function that another user
            names would run without being trusted.
    """
    if path is not None:
        return open_task(path)
    data, *others = {(one.config.data.source, str(one.config.data.args)): one for one in saved}.values()
    if others:
        raise UserError(
            f"{data.path} was trained on {data.config.data.source}, {others[0].path} on "
            f"{others[0].config.data.source}; name the data with --data"
        )
    if data.config.data.factory is not None:
        data.require_trusted(f"data.factory = {data.config.data.factory!r}")
    return open_data(data.config.data)


def validation_outputs(task: Task, saved: Sequence[SavedModel]) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Yield each model's outputs for a validation batch, and the target, one batch at a time.

    The batches are those on which training validates without `train.validation_items`, all ranks' together. Models run
    on the GPU if there is one.

    Args:
        task: the open task; its validation part is read.
        saved: the models.

    Yields:
        The outputs in the order of `saved`, as `task.objective` takes them; and the target, shaped as that of a
        `Batch`.

    Raises:
        UserError: a model does not fit the data, or the models' sequence lengths differ.
    """
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
