"""Each rank's batches of what can be numbered: groups read disjoint parts, ranks disjoint parts of their batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from hpcdistill.data.arrays import Numbers
from hpcdistill.errors import UserError


class Batch(NamedTuple):
    """What a model is shown, and what it should have said."""

    inputs: tuple[torch.Tensor, ...]
    """Given to the model one by one; the first dimension of each is that of the batch."""
    target: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        """The same there."""
        return Batch(tuple(tensor.to(device) for tensor in self.inputs), self.target.to(device))


@dataclass(frozen=True)
class Share:
    """What one rank takes of the training data."""

    part: int = 0
    """Which of the `parts` that the data is cut into; a part is that of a group, or of all groups."""
    parts: int = 1
    rank: int = 0
    """Which of the `size` shares that each batch is cut into."""
    size: int = 1
    seed: tuple[int, ...] = (0,)
    """Of the order; equal on all ranks of a group, and on none of another."""

    def of_batch(self, batch_size: int) -> int:
        """What each rank takes of a batch.

        Raises:
            UserError: it does not split evenly over the ranks.
        """
        if batch_size % self.size:
            raise UserError(
                f"data.batch_size = {batch_size} cannot be split evenly over the {self.size} ranks of a group; "
                f"set --data.batch_size to a multiple of {self.size}"
            )
        return batch_size // self.size


def evenly_spread(available: int, most: int) -> Numbers:
    """At most `most` of the numbers below `available`, int64."""
    return np.linspace(0, available - 1, min(available, most)).astype(np.int64)


def require_one_each(available: int, size: int, holding: str, remedy: str = "prepare more data") -> None:
    """See that each of a group's `size` ranks has something to validate on.

    Raises:
        UserError: there is less; `holding` says in words what there is.
    """
    if available < size:
        raise UserError(f"{holding}, fewer than the {size} ranks of a group; {remedy}")


def too_few(share: Share) -> str:
    """Return the remedies, in words, where a part is smaller than one batch."""
    if share.parts == 1:
        return "prepare more data, or lower --data.batch_size"
    return (
        "prepare more data, lower --data.batch_size or --groups, or let all groups read all of it with "
        "--data.partition=same"
    )


class Batches:
    """An endless iterator over one rank's training batches, which can go on from any batch.

    Part p of P has items p, p + P, p + 2P… and they are drawn without replacement, in a new order in each pass.
    Contiguous parts would be as disjoint, but neighbours are alike, and the groups would then learn different things.

    Args:
        items: how many there are, all parts together.
        read: makes a batch of some of them, given their numbers and a generator for what is random in it.
        batch_size: items a group takes per step, shared out among its ranks.
        share: this rank's.
        what: what the items are, for messages, such as "sequences".

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
        mine = share.of_batch(batch_size)
        self._read = read
        self._batch_size = batch_size
        self._share = share
        self._owned = range(share.part, items, share.parts)
        self._per_pass = len(self._owned) // batch_size
        if not self._per_pass:
            raise UserError(
                f"the data gives each of {share.parts} groups {len(self._owned)} {what}, fewer than data.batch_size = "
                f"{batch_size}; {too_few(share)}"
            )
        self._mine = slice(share.rank * mine, (share.rank + 1) * mine)
        self._order = np.empty(0, np.int64)
        self._order_pass = -1
        self.drawn = 0
        """Batches drawn so far, the cursor of a restart; set it to go on from there."""

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        number, index = divmod(self.drawn, self._per_pass)
        if number != self._order_pass:
            self._order = np.random.default_rng((*self._share.seed, number)).permutation(self._owned)
            self._order_pass = number
        chance = np.random.default_rng((*self._share.seed, self._share.rank, self.drawn))
        self.drawn += 1
        batch = self._order[index * self._batch_size :][: self._batch_size]
        return self._read(batch[self._mine], chance)
