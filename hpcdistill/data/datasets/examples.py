"""Check of what a user's dataset or loader yields."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hpcdistill.data.batches import IGNORED, Batch
from hpcdistill.errors import UserError

CONTRACT = "expected (inputs, target), where inputs is a tensor, a tuple of tensors, or a dictionary of tensors by name"


def to_batch(collated: Any, setting: str, classes: int | None, rows: int | None = None) -> Batch:
    """Return the batch that a loader has made of examples.

    Args:
        collated: inputs and target.
        setting: key that names the data, for messages.
        classes: number of classes; None for targets of 0 or 1.
        rows: number of examples that the batch must have; None for any.

    Raises:
        UserError: a part has the wrong type, shape or dtype, or a target is out of range; names it.
    """
    if not isinstance(collated, (tuple, list)) or len(collated) != 2:
        raise UserError(f"{setting}: a batch is {_described(collated)}; {CONTRACT}")
    inputs, target = collated
    named = dict(inputs) if isinstance(inputs, dict) else {}
    positional = () if named else tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    for name, value in [("target", target), *enumerate(positional), *named.items()]:
        place = "the target" if value is target else f"input {name!r}"
        if not isinstance(value, Tensor):
            raise UserError(f"{setting}: {place} of a batch is {_described(value)}, expected a tensor; {CONTRACT}")
        if value.shape[:1] != target.shape[:1] or not value.dim():
            raise UserError(
                f"{setting}: {place} of a batch is {_described(value)}, and the target {_described(target)}; the first "
                "dimension of each must be the examples of the batch"
            )
    if rows is not None and len(target) != rows:
        raise UserError(
            f"{setting}: a batch has {len(target)} examples, expected {rows}, data.batch_size divided by the ranks of "
            "a group; the function gets this number as `batch_size` if it has that parameter; use drop_last=True"
        )
    return Batch(positional, _checked(target, setting, classes), named)


def _checked(target: Tensor, setting: str, classes: int | None) -> Tensor:
    """Return the target in the dtype of the loss."""
    if classes is None:
        if not target.is_floating_point():
            raise UserError(
                f"{setting}: the target is {_described(target)}, expected floats, 0 or 1; for a choice among classes "
                "set --data.classes"
            )
        wrong = target[(target < 0) | (target > 1) | target.isnan()]
        expected = "0 to 1, without data.classes"
    else:
        if target.dtype != torch.int64:
            raise UserError(
                f"{setting}: the target is {_described(target)}, expected int64, numbers of the data.classes = "
                f"{classes} classes"
            )
        wrong = target[((target < 0) | (target >= classes)) & (target != IGNORED)]
        expected = f"0 to {classes - 1}, as data.classes = {classes}, or {IGNORED} for no target"
    if wrong.numel():
        raise UserError(f"{setting}: a target is {wrong[0].item()}, expected {expected}")
    return target.float() if classes is None else target


def _described(value: Any) -> str:
    """Return the dtype and shape of a tensor, such as "int64 [8, 3]"; the type of anything else."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, dict):
        return f"a dictionary of {', '.join(map(repr, value)) or 'nothing'}"
    name = type(value).__name__
    if isinstance(value, (tuple, list)):
        return f"a {name} of {', '.join(sorted({type(each).__name__ for each in value})) or 'nothing'} ({len(value)})"
    return name
