"""Batches of rows of one rank: groups read disjoint rows, and ranks disjoint rows of their group's batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from hpcdistill.data.arrays import Numbers
from hpcdistill.data.batches import Batch, Share, TrainingBatches, evenly_spread, require_one_each, too_few
from hpcdistill.data.rows.store import CHUNK_ROWS, Rows, RowStore
from hpcdistill.errors import UserError

POOL_ROWS = 64 * CHUNK_ROWS
"""Approximate maximum number of rows that are in memory, and shuffled together."""
LEAST_UNITS = 16
"""Minimum number of blocks of a part, so that short sorted tables are split evenly."""
VALIDATION_BLOCKS = 64
"""Default number of validation blocks, evenly spread over the part: the same for every group and every run."""


class RowBatches(TrainingBatches):
    """Training batches of rows.

    A batch has float32 [batch, D] and int32 [batch, C] as inputs and float32 [batch], 0 or 1, as target.

    The rows are split into blocks of at most one chunk of the file (see `assign_blocks`); the numbers of rows of two
    parts differ by at most one. In each pass, a part's blocks are shuffled and split over the group's ranks, with equal
    numbers of rows.
    A rank reads its rows pool by pool, shuffles each pool, and cuts it into batches. Thus no row occurs twice in a
    pass, each block is read by one rank (two, if one rank's rows end within it), and only one pool is in memory.

    The rows of an incomplete last batch are left out; they differ from pass to pass.

    Args:
        store: the data.
        batch_size: rows per group and step, split over the group's ranks.
        share: share of this rank.

    Raises:
        UserError: the batch does not split evenly over the ranks, or the data is shorter than one batch.
    """

    def __init__(self, store: RowStore, batch_size: int, share: Share) -> None:
        self._share = share.of_batch(batch_size)
        self._store = store
        self._seed = share.seed
        self._rank = share.rank
        self._begins, self._lengths = assign_blocks(store.size("train"), share.part, share.parts)
        rows = int(self._lengths.sum())
        self.per_pass = self._per_pass = rows // batch_size
        if not self._per_pass:
            raise UserError(
                f"{store.path} gives group {share.part} of {share.parts} {rows} rows, fewer than data.batch_size = "
                f"{batch_size}; {too_few(share)}"
            )
        self._per_pool = max(1, POOL_ROWS // self._share)  # batches
        self._pool_at = (-1, -1)  # its pass, and its number in the pass

    def __next__(self) -> Batch:
        number, batch = divmod(self.drawn, self._per_pass)
        pool, index = divmod(batch, self._per_pool)
        if self._pool_at != (number, pool):
            self._pool = self._read_pool(number, pool)
            self._pool_at = (number, pool)
        self.drawn += 1
        return _batch(self._pool.at(slice(index * self._share, (index + 1) * self._share)))

    def _read_pool(self, number: int, pool: int) -> Rows:
        """Read pool `pool` of pass `number`, consecutive blocks in the order of the pass, and shuffle its rows."""
        order = np.random.default_rng((*self._seed, number)).permutation(len(self._begins))
        ends = np.cumsum(self._lengths[order])
        first = self._rank * self._per_pass  # batch of this rank, in the order of the pass
        begin = (first + pool * self._per_pool) * self._share
        end = (first + min((pool + 1) * self._per_pool, self._per_pass)) * self._share
        pieces = []
        for place in range(np.searchsorted(ends, begin, "right"), np.searchsorted(ends, end, "left") + 1):
            block = order[place]
            start = ends[place] - self._lengths[block]
            inside = slice(max(begin - start, 0), min(end - start, self._lengths[block]))
            pieces.append(
                self._store.read("train", int(self._begins[block] + inside.start), int(inside.stop - inside.start))
            )
        rows = _concatenate(pieces)
        mixer = np.random.default_rng((*self._seed, number, self._rank, pool))
        return rows.at(mixer.permutation(len(rows.label)))


def assign_blocks(rows: int, part: int, parts: int) -> tuple[Numbers, Numbers]:
    """Split rows into blocks, and assign blocks to parts in turns; the parts differ by at most one row.

    Blocks have the size of a chunk if there are many. The rest after the last full turn is assigned in smaller blocks,
    at the end row by row.

    Args:
        rows: number of rows of all parts together.
        part: number of the part, from 0.
        parts: number of parts.

    Returns:
        First row and length of each block of the part, int64.
    """
    begin, begins, lengths = 0, [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    while begin < rows:
        unit = min(CHUNK_ROWS, max(1, (rows - begin) // (LEAST_UNITS * parts)))
        end = begin + max(1, (rows - begin) // (unit * parts)) * unit * parts
        begins.append(np.arange(begin + part * unit, min(end, rows), unit * parts))
        lengths.append(np.full(len(begins[-1]), unit))
        begin = end
    return np.concatenate(begins), np.concatenate(lengths)


def row_validation_batches(
    store: RowStore, batch_size: int, rank: int, size: int, most: int | None = None
) -> list[Batch]:
    """Return one rank's share of `most` validation rows, from evenly spread blocks, in batches of `batch_size`.

    Raises:
        UserError: the validation part has fewer rows than the group has ranks.
    """
    rows = store.size("validation")
    require_one_each(rows, size, f"{store.path} holds {rows} validation rows")
    needed = 0 if most is None else -(-most // CHUNK_ROWS) + 1  # the last block may be short
    chosen = evenly_spread(-(-rows // CHUNK_ROWS), max(needed, VALIDATION_BLOCKS))
    read = _concatenate([store.read("validation", int(block) * CHUNK_ROWS, CHUNK_ROWS) for block in chosen])
    kept = evenly_spread(len(read.label), len(read.label) if most is None else most)
    share = read.at(kept[rank::size])
    return [_batch(share.at(slice(begin, begin + batch_size))) for begin in range(0, len(share.label), batch_size)]


def _concatenate(pieces: list[Rows]) -> Rows:
    return Rows(*(np.concatenate(column) for column in zip(*pieces, strict=True)))


def _batch(rows: Rows) -> Batch:
    columns: list[Any] = [rows.dense, rows.categorical, rows.label.astype(np.float32)]
    dense, categorical, label = map(torch.from_numpy, columns)
    return Batch((dense, categorical), label)
