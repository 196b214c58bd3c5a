"""Replicas of a student, and their forward passes."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hpcdistill.codistill.predictions import Outputs, Predictions, hold_until_done
from hpcdistill.errors import UserError
from hpcdistill.models.recurrent import flatten_recurrent


class Replicas:
    """Replicas of a student that predict without gradient; on a GPU, on a side stream.

    Args:
        student: the model of which replicas are made.
        outputs: computes a model's outputs, as for `Codistillation`.
        precision: "full", or "bf16" for autocast to bfloat16 where the caller uses no autocast.
    """

    def __init__(self, student: nn.Module, outputs: Outputs, precision: str) -> None:
        self._student = student
        self._outputs = outputs
        self._is_bf16 = precision == "bf16"
        parameter = next(student.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype
        self._stream = torch.cuda.Stream(parameter.device) if parameter.is_cuda else None

    def make(self) -> nn.Module:
        """Return a new replica, in eval mode, with the student's present weights."""
        replica = copy.deepcopy(self._student).eval().requires_grad_(False)
        flatten_recurrent(replica)
        return replica

    def wait(self) -> None:
        """Make the current stream wait for the forward passes so far; call it before a replica's weights change."""
        if self._stream:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)

    @contextmanager
    def side_stream(self, *inputs: Any) -> Iterator[None]:
        """Return a context in which GPU work goes to the side stream, once `inputs` are computed."""
        if self._stream:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
            hold_until_done(inputs, self._stream)
        with torch.cuda.stream(self._stream):
            yield

    @torch.no_grad()
    def predict(self, replica: nn.Module, group: int, inputs: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Return the outputs of a replica.

        Args:
            replica: the replica.
            group: the group whose model it is, for the error message.
            inputs: what the student's forward takes.
            kwargs: what the student's forward takes by name.

        Raises:
            UserError: the replica cannot predict for these inputs.
        """
        to_bf16 = self._is_bf16 and not torch.is_autocast_enabled(self._device.type)
        try:
            if not to_bf16:
                return self._outputs(replica, *inputs, **kwargs)
            with torch.autocast(self._device.type, torch.bfloat16):
                outputs = self._outputs(replica, *inputs, **kwargs)
        except Exception as error:
            raise UserError(
                f"the model of group {group} cannot predict for these inputs ({type(error).__name__}: {error}); "
                "pass predict() what the student's forward takes, on its device"
            ) from error
        return outputs.to(self._dtype) if isinstance(outputs, Tensor) else outputs  # the student's, for the loss

    def hand_over(self, outputs: list[Any]) -> Sequence[Any]:
        """Return outputs of the side stream as a sequence whose readers wait for them."""
        return Predictions(outputs, self._stream) if self._stream else outputs
