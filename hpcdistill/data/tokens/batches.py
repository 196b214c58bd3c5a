"""Batches of token sequences; the target of each token is the next one."""

from __future__ import annotations

import numpy as np
import torch

from hpcdistill.config.data import DataConfig
from hpcdistill.data.arrays import Numbers
from hpcdistill.data.batches import Batch, Batches, Share, evenly_spread, require_one_each
from hpcdistill.data.tokens.store import TokenStore

VALIDATION_SEQUENCES = 1024
"""Default number of validation sequences, evenly spread over the part: the same for every group and every run."""


def sequence_batches(store: TokenStore, config: DataConfig, share: Share) -> Batches:
    """Return one rank's training batches, with inputs and targets int64 [batch, time]; see `Batches`."""
    length = config.sequence_length
    return Batches(
        (store.size("train") - 1) // length,
        lambda numbers, _: _sequences(store, "train", numbers, length),
        config.batch_size,
        share,
        f"sequences of {length} tokens",
    )


def sequence_validation_batches(
    store: TokenStore, config: DataConfig, rank: int, size: int, most: int | None = None
) -> list[Batch]:
    """Return one rank's share of `most` validation sequences, evenly spread, in batches of at most `batch_size`.

    Raises:
        UserError: the validation part is shorter than one sequence.
    """
    available = (store.size("validation") - 1) // config.sequence_length
    holding = f"{store.path} holds {max(available, 0)} validation sequences of {config.sequence_length} tokens"
    require_one_each(available, size, holding, "prepare more data or lower --data.sequence_length")
    chosen = evenly_spread(available, most or VALIDATION_SEQUENCES)[rank::size]
    return [
        _sequences(store, "validation", chosen[begin : begin + config.batch_size], config.sequence_length)
        for begin in range(0, len(chosen), config.batch_size)
    ]


def _sequences(store: TokenStore, part: str, numbers: Numbers, length: int) -> Batch:
    tokens = torch.from_numpy(np.stack([store.read(part, n * length, length + 1) for n in numbers]))
    return Batch((tokens[:, :-1],), tokens[:, 1:].contiguous())
