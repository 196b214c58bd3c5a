"""State objects of other libraries as tensors, which neither run code nor change later."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Tensor


def pack(value: Any) -> Tensor:
    """Return numbers, text, tensors, and dictionaries and lists of these as bytes, uint8 [n].

    Raises:
        Exception: torch cannot pickle the value.
    """
    file = io.BytesIO()
    torch.save(value, file)
    return torch.frombuffer(bytearray(file.getbuffer()), dtype=torch.uint8)


def unpack(packed: Tensor) -> Any:
    """Return the value that `pack` has packed.

    Raises:
        pickle.UnpicklingError: it has objects of other types, whose making could run code.
    """
    return torch.load(io.BytesIO(packed.numpy().tobytes()), map_location="cpu", weights_only=True)
