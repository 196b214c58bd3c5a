"""Payload of a model's parameters and buffers."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

from hpcdistill.exchange.base import Payload
from hpcdistill.exchange.codec import Packing, require_codec
from hpcdistill.exchange.layout import Layout


class WeightPayload(Payload):
    """Parameters and buffers of a model.

    Args:
        model: the module to publish.
        codec: encoding of its parameters, a key of `codec.CODECS`.

    Attributes:
        layout: order of the model's tensors.

    Raises:
        UserError: the codec does not carry a parameter's dtype.
    """

    def __init__(self, model: nn.Module, codec: str = "fp32") -> None:
        self.layout = Layout.of(model)
        require_codec(codec, self.layout)
        self._model = model
        self._codec = codec
        self._device = next((tensor.device for tensor in self.layout.tensors(model)), torch.device("cpu"))
        self._packing = cache(lambda rank, size: Packing(self.layout, codec, rank, size))

    @property
    def facts(self) -> dict[str, Any]:
        """Codec, and name, shape and dtype of each tensor."""
        return {"codec": self._codec, "tensors": self.layout.signature}

    @property
    def device(self) -> torch.device:
        """Device of the model when the payload was made."""
        return self._device

    def nbytes(self, rank: int, size: int) -> int:
        """Return the length of shard `rank` of `size`, a multiple of 64."""
        return self._packing(rank, size).nbytes

    def encode(self, rank: int, size: int, wire: torch.Tensor) -> None:
        """Write shard `rank` of `size` of the model into `wire`; see `Payload.encode`."""
        self._packing(rank, size).encode(self.layout.tensors(self._model), wire)

    def load(self, shards: list[torch.Tensor], model: nn.Module) -> None:
        """Copy a snapshot into the parameters and buffers of `model`, on any device.

        On a GPU the copy may still be under way at the return; reading a value of `model` waits for it.

        Args:
            shards: all shards of the snapshot, in order, as `encode` wrote them.
            model: a replica of the published model.

        Raises:
            UserError: the layout of `model` is another one.
        """
        tensors = self.layout.tensors(model)
        for rank, wire in enumerate(shards):
            self._packing(rank, len(shards)).decode(wire, tensors)
