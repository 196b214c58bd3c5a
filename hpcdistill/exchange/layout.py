"""Flat layout of a model's parameters and buffers, and its division into one shard for each rank."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from hpcdistill.errors import UserError

ALIGNMENT = 64  # bytes; a multiple of every dtype's size, so that no element is split between shards


@dataclass(frozen=True)
class Entry:
    """Place of one tensor in the flat layout; `offset` and `nbytes` in bytes of the model's own dtypes."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int
    nbytes: int
    is_weight: bool
    """True for floating-point parameters, which may be rounded; False for buffers and integers, which may not."""

    def __str__(self) -> str:
        return f"{self.name} {list(self.shape)} {str(self.dtype).removeprefix('torch.')}"


@dataclass(frozen=True)
class Piece:
    """Elements [first, last) of tensor number `index` of the layout."""

    index: int
    entry: Entry
    first: int
    last: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.last - self.first

    def of(self, tensors: list[torch.Tensor]) -> torch.Tensor:
        """Return the piece as a 1-D view of a model's `tensors`."""
        return tensors[self.index].view(-1)[self.first : self.last]


@dataclass(frozen=True)
class Layout:
    """Order and place of a model's tensors in `nbytes` bytes; equal for equal models."""

    entries: tuple[Entry, ...]
    nbytes: int

    @classmethod
    def of(cls, model: nn.Module) -> Layout:
        """Return the layout of `model`.

        Raises:
            ValueError: a tensor is not contiguous.
        """
        entries = []
        offset = 0
        for name, tensor in snapshot_tensors(model).items():
            is_weight = isinstance(tensor, nn.Parameter) and tensor.is_floating_point()
            entries.append(Entry(name, tuple(tensor.shape), tensor.dtype, offset, tensor.nbytes, is_weight))
            offset += aligned(tensor.nbytes)
        return cls(tuple(entries), offset)

    @property
    def signature(self) -> list[str]:
        """Name, shape and dtype of each tensor, in order; equal layouts have equal signatures."""
        return [str(entry) for entry in self.entries]

    def difference(self, other: Layout) -> str:
        """Describe the first difference between two layouts; return an empty string if they are equal."""
        for mine, theirs in zip(self.signature, other.signature, strict=False):
            if mine != theirs:
                return f"{mine} against {theirs}"
        if len(self.entries) != len(other.entries):
            return f"{len(self.entries)} tensors against {len(other.entries)}"
        return ""

    def shard(self, rank: int, size: int) -> list[Piece]:
        """Return shard `rank` of `size`: an equal share of the bytes, in layout order."""
        length = aligned(-(-self.nbytes // size))
        begin, end = rank * length, (rank + 1) * length
        pieces = []
        for index, entry in enumerate(self.entries):
            first, last = max(entry.offset, begin), min(entry.offset + entry.nbytes, end)
            if first < last:
                size_of_one = entry.dtype.itemsize
                elements = (first - entry.offset) // size_of_one, (last - entry.offset) // size_of_one
                pieces.append(Piece(index, entry, *elements))
        return pieces

    def tensors(self, model: nn.Module) -> list[torch.Tensor]:
        """Return the tensors of `model`, detached, in layout order.

        Raises:
            UserError: a tensor's shape or dtype differs from the layout.
        """
        tensors = [tensor.detach() for tensor in snapshot_tensors(model).values()]
        expected = [(entry.shape, entry.dtype) for entry in self.entries]
        if [(tuple(tensor.shape), tensor.dtype) for tensor in tensors] != expected:
            raise UserError(
                f"the model has changed since the exchange was opened: {self.difference(Layout.of(model))}; "
                "parameters and buffers must keep their shapes and dtypes while groups codistil"
            )
        return tensors


def snapshot_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return parameters and persistent buffers by name; tied parameters once.

    Raises:
        ValueError: a tensor is not contiguous, so that its memory cannot be viewed flat.
    """
    persistent = model.state_dict(keep_vars=True)
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in persistent}
    tensors = {**dict(model.named_parameters()), **buffers}
    for name, tensor in tensors.items():
        if not tensor.is_contiguous():
            raise ValueError(f"{name} is not contiguous; make it so with .contiguous() before training")
    return tensors


def aligned(nbytes: int) -> int:
    """Round up to a multiple of `ALIGNMENT`."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
