"""What a snapshot holds: a model's parameters and buffers in one flat order, cut into one shard for each rank."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import nn

from hpcdistill.errors import UserError

ALIGNMENT = 64  # bytes; a multiple of every dtype's size, so that a cut between shards never splits an element


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies in the flat order; `offset` and `nbytes` in bytes of the model's own memory."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int
    nbytes: int
    is_weight: bool
    """A parameter of floating point, which may be rounded; all else, counters and running statistics, may not."""

    def __str__(self) -> str:
        return f"{self.name} {list(self.shape)} {str(self.dtype).removeprefix('torch.')}"


@dataclass(frozen=True)
class Piece:
    """The elements [first, last) of the tensor that the layout lists as number `index`."""

    index: int
    entry: Entry
    first: int
    last: int

    @property
    def numel(self) -> int:
        """How many elements."""
        return self.last - self.first

    def of(self, tensors: list[torch.Tensor]) -> torch.Tensor:
        """The piece in the memory of the model whose tensors these are: 1-D."""
        return tensors[self.index].view(-1)[self.first : self.last]


@dataclass(frozen=True)
class Layout:
    """The order and place of a model's tensors in `nbytes` bytes, the same for every equal model."""

    entries: tuple[Entry, ...]
    nbytes: int

    @classmethod
    def of(cls, model: nn.Module) -> Layout:
        """The layout of `model`."""
        entries = []
        offset = 0
        for name, tensor in snapshot_tensors(model).items():
            is_weight = isinstance(tensor, nn.Parameter) and tensor.is_floating_point()
            entries.append(Entry(name, tuple(tensor.shape), tensor.dtype, offset, tensor.nbytes, is_weight))
            offset += aligned(tensor.nbytes)
        return cls(tuple(entries), offset)

    @property
    def digest(self) -> str:
        """Equal for two layouts if and only if names, shapes, dtypes and order are."""
        return hashlib.blake2b("\n".join(map(str, self.entries)).encode(), digest_size=16).hexdigest()

    def difference(self, other: Layout) -> str:
        """The first entry in which two layouts differ, in words; empty when they are equal."""
        for mine, theirs in zip(self.entries, other.entries, strict=False):
            if str(mine) != str(theirs):
                return f"{mine} against {theirs}"
        if len(self.entries) != len(other.entries):
            return f"{len(self.entries)} tensors against {len(other.entries)}"
        return ""

    def shard(self, rank: int, size: int) -> list[Piece]:
        """What `rank` of `size` carries: an equal share of the bytes, in layout order."""
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
        """The model's own tensors, detached, in layout order.

        Raises:
            UserError: a tensor's name, shape or dtype is not the layout's.
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
    """Parameters and persistent buffers by name; tied parameters once.

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
    """The next multiple of `ALIGNMENT`."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
