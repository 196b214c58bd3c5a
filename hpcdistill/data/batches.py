"""Batches of one rank, of any data with numbered items."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from hpcdistill.data.arrays import Numbers
from hpcdistill.errors import UserError

if TYPE_CHECKING:
    from typing_extensions import Self

IGNORED = -100
"""Target that no loss counts, as in torch's `cross_entropy`."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Inputs of a model, and their targets; the first dimension of each tensor is that of the batch."""

    inputs: tuple[Tensor, ...]
    """Positional arguments of the model."""
    target: Tensor
    named: dict[str, Tensor] = field(default_factory=dict)
    """Arguments of the model that are passed by name."""

    @property
    def counted(self) -> Tensor:
        """Number of targets that are not ignored, int64 []."""
        return (self.target != IGNORED).sum()

    def to(self, device: torch.device) -> Batch:
        """Return the batch on `device`. From pinned memory, a copy to a GPU runs beside the host's work."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin(self) -> Batch:
        """Return a copy of the batch in pinned memory."""
        return self._map(Tensor.pin_memory)

    def first(self, items: int) -> Batch:
        """Return the first items of the batch, a view of it."""
        return self._map(lambda tensor: tensor[:items])

    def split(self, parts: int) -> list[Batch]:
        """Return `parts` consecutive batches, views of this one, whose sizes differ by at most one."""

        def part(number: int) -> Batch:
            return self._map(lambda tensor: tensor.tensor_split(parts)[number])

        return [part(number) for number in range(parts)]

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        named = {name: change(tensor) for name, tensor in self.named.items()}
        return Batch(tuple(map(change, self.inputs)), change(self.target), named)


@dataclass(frozen=True)
class Share:
    """Share of one rank in the training data."""

    part: int = 0
    """Number of the part of the data, of `parts`, that the rank's group trains on."""
    parts: int = 1
    rank: int = 0
    """Number of the rank, of `size`, among those that share each batch."""
    size: int = 1
    seed: tuple[int, ...] = (0,)
    """Seed of the order: equal on all ranks of a group, and different in each group."""

    @property
    def shard(self) -> int:
        """Number of this rank, of `shards`, among all that share the training data."""
        return self.part * self.size + self.rank

    @property
    def shards(self) -> int:
        """Number of ranks that share the training data: those of all groups, or of one group with data of its own."""
        return self.parts * self.size

    def of_batch(self, batch_size: int) -> int:
        """Return the number of items of each rank in a batch of `batch_size`.

        Raises:
            UserError: the batch does not split evenly over the ranks.
        """
        if batch_size % self.size:
            raise UserError(
                f"data.batch_size = {batch_size} cannot be split evenly over the {self.size} ranks of a group; "
                f"set --data.batch_size to a multiple of {self.size}"
            )
        return batch_size // self.size


def evenly_spread(available: int, most: int) -> Numbers:
    """Return at most `most` of the integers in [0, available), evenly spread, int64."""
    return np.linspace(0, available - 1, min(available, most)).astype(np.int64)


def require_one_each(available: int, size: int, holding: str, remedy: str = "prepare more data") -> None:
    """Check that each of a group's `size` ranks has an item to validate on.

    Raises:
        UserError: there are fewer items; `holding` says in words what there is.
    """
    if available < size:
        raise UserError(f"{holding}, fewer than the {size} ranks of a group; {remedy}")


def too_few(share: Share) -> str:
    """Return the remedies, in words, for a part that is smaller than one batch."""
    if share.parts == 1:
        return "prepare more data, or lower --data.batch_size"
    return (
        "prepare more data, lower --data.batch_size or --groups, or let all groups read all of it with "
        "--data.partition=same"
    )


class TrainingBatches(ABC):
    """Endless iterator over one rank's training batches, which can continue from any of them."""

    drawn: int = 0
    """Number of batches drawn so far, the cursor of a restart; set it to continue from there."""
    per_pass: int | None = None
    """Number of batches of one pass over the data of this rank's group; None where it is not known."""
    reader_state: Tensor | None = None
    """State of a reader that cannot find its place by `drawn` alone; set it to continue from there."""

    def __iter__(self) -> Self:
        return self

    @abstractmethod
    def __next__(self) -> Batch:
        """Return the next batch."""

    def close(self) -> None:  # noqa: B027 - most read by themselves
        """End the processes that read, if there are any."""


class BatchOrder:
    """Numbers of the items in each of one rank's batches.

    Part p of P has the items p, p + P, p + 2P…; they are drawn without replacement, in a new order in each pass.
    Contiguous parts would be disjoint too, but neighbouring items are similar, and groups would train on different
    distributions.

    Args:
        items: number of items of all parts together.
        batch_size: items per group and step, split over the group's ranks.
        share: share of this rank.
        what: name of the items in messages, such as "sequences".

    Attributes:
        per_pass: number of batches of one pass.

    Raises:
        UserError: the batch does not split evenly over the ranks, or the part is smaller than one batch.
    """

    def __init__(self, items: int, batch_size: int, share: Share, what: str) -> None:
        mine = share.of_batch(batch_size)
        self._batch_size = batch_size
        self._share = share
        self._owned = range(share.part, items, share.parts)
        self.per_pass = len(self._owned) // batch_size
        if not self.per_pass:
            raise UserError(
                f"the data gives each of {share.parts} groups {len(self._owned)} {what}, fewer than data.batch_size = "
                f"{batch_size}; {too_few(share)}"
            )
        self._mine = slice(share.rank * mine, (share.rank + 1) * mine)
        self._order = np.empty(0, np.int64)
        self._order_pass = -1

    def numbers(self, batch: int) -> Numbers:
        """Return the numbers of the items in batch `batch`, counted from the first of all passes."""
        number, index = divmod(batch, self.per_pass)
        if number != self._order_pass:
            self._order = np.random.default_rng((*self._share.seed, number)).permutation(self._owned)
            self._order_pass = number
        return self._order[index * self._batch_size :][: self._batch_size][self._mine]

    def seed(self, batch: int) -> tuple[int, ...]:
        """Return a seed for what is random in batch `batch`, which differs between ranks."""
        return (*self._share.seed, self._share.rank, batch)


class Batches(TrainingBatches):
    """Training batches of numbered items, in the order of `BatchOrder`.

    Args:
        items: number of items of all parts together.
        read: function that makes a batch from the numbers of its items and a random generator.
        batch_size: items per group and step, split over the group's ranks.
        share: share of this rank.
        what: name of the items in messages, such as "sequences".

    Raises:
        UserError: the batch does not split evenly over the ranks, or the part is smaller than one batch.
    """

    def __init__(
        self,
        items: int,
        read: Callable[[Numbers, np.random.Generator], Batch],
        batch_size: int,
        share: Share,
        what: str,
    ) -> None:
        self._order = BatchOrder(items, batch_size, share, what)
        self.per_pass = self._order.per_pass
        self._read = read

    def __next__(self) -> Batch:
        rng = np.random.default_rng(self._order.seed(self.drawn))
        numbers = self._order.numbers(self.drawn)
        self.drawn += 1
        return self._read(numbers, rng)
