"""Outputs of models, and their hand-over from the stream of a GPU on which teachers compute them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Outputs = Callable[..., Any]
"""Function `(model, *inputs, **kwargs)` that returns what the loss takes of a model."""


class Predictions(Sequence[Any]):
    """Teachers' outputs that a side stream computes; reading one makes the current stream wait for the side stream.

    So the teachers' forward overlaps with the work that the current stream gets before the first output is read.

    Args:
        outputs: outputs of each teacher: tensors, or tuples, lists and dictionaries of them.
        stream: the side stream.
    """

    def __init__(self, outputs: list[Any], stream: torch.cuda.Stream) -> None:
        self._outputs = outputs
        self._stream = stream

    def __len__(self) -> int:
        return len(self._outputs)

    def __getitem__(self, index: Any) -> Any:
        current = torch.cuda.current_stream(self._stream.device)
        current.wait_stream(self._stream)
        outputs = self._outputs[index]
        hold_until_done(outputs, current)
        return outputs


def hold_until_done(value: Any, stream: torch.cuda.Stream) -> None:
    """Keep the memory of all GPU tensors in `value` from being reused before `stream` has finished its present work."""
    for tensor in _tensors(value):
        if tensor.is_cuda:
            tensor.record_stream(stream)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)
