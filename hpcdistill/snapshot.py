"""One flat layout for a model's parameters and buffers, so that they travel as plain bytes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import nn

ALIGNMENT = 64  # bytes; a multiple of every dtype's size, so that a cut between shards never splits an element


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies in the flat layout; `offset` and `nbytes` in bytes."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int
    nbytes: int

    def __str__(self) -> str:
        return f"{self.name} {list(self.shape)} {str(self.dtype).removeprefix('torch.')}"


@dataclass(frozen=True)
class Layout:
    """The order and place of a model's tensors in `nbytes` flat bytes, the same for every equal model."""

    entries: tuple[Entry, ...]
    nbytes: int

    @classmethod
    def of(cls, model: nn.Module) -> Layout:
        """The layout of `model`."""
        entries = []
        offset = 0
        for name, tensor in snapshot_tensors(model).items():
            entries.append(Entry(name, tuple(tensor.shape), tensor.dtype, offset, tensor.nbytes))
            offset += _aligned(tensor.nbytes)
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

    def shard(self, rank: int, size: int) -> tuple[int, int]:
        """The bytes [begin, end) that `rank` of `size` carries; all but the last shards are equally long."""
        length = self.shard_nbytes(size)
        return min(rank * length, self.nbytes), min((rank + 1) * length, self.nbytes)

    def shard_nbytes(self, size: int) -> int:
        """Length of the longest of `size` shards, in bytes."""
        return _aligned(-(-self.nbytes // size))

    def views(self, flat: torch.Tensor, begin: int, end: int) -> list[torch.Tensor]:
        """What lies in bytes [begin, end) of the layout, as 1-D typed views into `flat`.

        Args:
            flat: uint8 [end - begin], 16-byte aligned.
            begin: a multiple of `ALIGNMENT`.
            end: a multiple of `ALIGNMENT`.

        Returns:
            One view for each tensor that lies in the range, wholly or partly, in layout order.
        """
        views = []
        for entry in self.entries:
            first, last = max(entry.offset, begin), min(entry.offset + entry.nbytes, end)
            if first < last:
                views.append(flat[first - begin : last - begin].view(entry.dtype))
        return views

    def slices(self, model: nn.Module, begin: int, end: int) -> list[torch.Tensor]:
        """The model's own memory for bytes [begin, end): 1-D tensors, shaped as `views` shapes the range."""
        slices = []
        for entry, tensor in zip(self.entries, snapshot_tensors(model).values(), strict=True):
            first, last = max(entry.offset, begin), min(entry.offset + entry.nbytes, end)
            if first < last:
                size = entry.dtype.itemsize
                elements = slice((first - entry.offset) // size, (last - entry.offset) // size)
                slices.append(tensor.view(-1)[elements])
        return slices


def snapshot_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Detached parameters and persistent buffers by name; tied parameters once.

    Raises:
        ValueError: a tensor is not contiguous, so that its memory cannot be viewed flat.
    """
    persistent = model.state_dict()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in persistent}
    tensors = {name: tensor.detach() for name, tensor in [*model.named_parameters(), *buffers.items()]}
    for name, tensor in tensors.items():
        if not tensor.is_contiguous():
            raise ValueError(f"{name} is not contiguous; make it so with .contiguous() before training")
    return tensors


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
