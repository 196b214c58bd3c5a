"""Each rank's batches: groups read disjoint parts of the data, ranks disjoint parts of their group's batch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from hpcdistill.config import DataConfig
from hpcdistill.data.store import TokenStore
from hpcdistill.errors import UserError

VALIDATION_SEQUENCES = 1024
"""At most this many, evenly spread over the validation part: the same ones for every group and every run."""

Batch = tuple[torch.Tensor, torch.Tensor]
"""Input tokens and their successors, int64 [batch, time] each."""


class Batches:
    """An endless iterator over one rank's training batches, which can go on from any batch.

    The training part is cut into sequences; group g of N owns sequences g, g + N, g + 2N… and draws them without
    replacement, in an order of its own in each pass. Contiguous parts would be as disjoint, but neighbouring files
    are alike, and the groups would then learn different things.

    Args:
        store: the data.
        config: batch size of a group, and sequence length.
        group: this group, of `groups`.
        groups: number of groups.
        rank: this rank, of `size` in the group.
        size: ranks per group.
        seed: of the order.

    Raises:
        UserError: the batch does not split evenly over the ranks, or the data is shorter than one batch.
    """

    def __init__(
        self, store: TokenStore, config: DataConfig, group: int, groups: int, rank: int, size: int, seed: int
    ) -> None:
        share = rank_share(config.batch_size, size)
        self._store = store
        self._config = config
        self._seed = (seed, group)
        sequences = (store.size("train") - 1) // config.sequence_length
        self._owned = range(group, sequences, groups)
        self._per_pass = len(self._owned) // config.batch_size
        if not self._per_pass:
            raise UserError(
                f"{store.path} gives each of {groups} groups {len(self._owned)} sequences of "
                f"{config.sequence_length} tokens, fewer than data.batch_size = {config.batch_size}; "
                "prepare more data, or lower --data.batch_size or --data.sequence_length"
            )
        self._mine = slice(rank * share, (rank + 1) * share)
        self._order = np.empty(0, np.int64)
        self._order_pass = -1
        self.drawn = 0
        """Batches drawn so far, the cursor of a restart; set it to go on from there."""

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        number, index = divmod(self.drawn, self._per_pass)
        if number != self._order_pass:
            self._order = np.random.default_rng((*self._seed, number)).permutation(self._owned)
            self._order_pass = number
        self.drawn += 1
        batch = self._order[index * self._config.batch_size :][: self._config.batch_size]
        return _sequences(self._store, "train", batch[self._mine], self._config.sequence_length)


def rank_share(batch_size: int, size: int) -> int:
    """What each of a group's `size` ranks takes of its batch.

    Raises:
        UserError: the batch does not split evenly over the ranks.
    """
    if batch_size % size:
        raise UserError(
            f"data.batch_size = {batch_size} cannot be split evenly over the {size} ranks of a group; "
            f"set --data.batch_size to a multiple of {size}"
        )
    return batch_size // size


def validation_batches(store: TokenStore, config: DataConfig, rank: int, size: int) -> list[Batch]:
    """One rank's share of the validation sequences, in batches of at most `batch_size`.

    Raises:
        UserError: the validation part is shorter than one sequence.
    """
    available = (store.size("validation") - 1) // config.sequence_length
    if available < size:
        raise UserError(
            f"{store.path} holds {max(available, 0)} validation sequences of {config.sequence_length} tokens, "
            f"fewer than the {size} ranks of a group; prepare more data or lower --data.sequence_length"
        )
    chosen = np.linspace(0, available - 1, min(available, VALIDATION_SEQUENCES)).astype(np.int64)[rank::size]
    return [
        _sequences(store, "validation", chosen[begin : begin + config.batch_size], config.sequence_length)
        for begin in range(0, len(chosen), config.batch_size)
    ]


def _sequences(store: TokenStore, part: str, numbers: np.ndarray, length: int) -> Batch:  # type: ignore[type-arg]
    tokens = torch.from_numpy(np.stack([store.read(part, n * length, length + 1) for n in numbers]))
    return tokens[:, :-1], tokens[:, 1:].contiguous()
