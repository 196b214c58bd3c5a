"""Training and validation batches of data that a user's function returns."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset

from hpcdistill.config.data import DataConfig
from hpcdistill.data.batches import Batch, BatchOrder, Share, TrainingBatches, evenly_spread, require_one_each
from hpcdistill.data.datasets.examples import to_batch
from hpcdistill.data.datasets.factory import FactoryData, is_map_style
from hpcdistill.data.datasets.faults import user_code
from hpcdistill.data.datasets.readers import Read, Stream, read_numbered, read_passes, read_stream
from hpcdistill.errors import UserError

logger = logging.getLogger(__name__)

VALIDATION_EXAMPLES = 10_000
"""Default maximum number of validation examples of a group."""


class DatasetBatches(TrainingBatches):
    """Training batches of a user's data.

    A map-style dataset is read in the order of `BatchOrder`; of an `IterableDataset` each rank takes each n-th example;
    a loader yields the batches of its rank.

    Args:
        store: the data.
        config: batch size and number of processes.
        share: share of this rank.

    Raises:
        UserError: the batch does not split evenly over the ranks; the dataset is smaller than one batch; several
            processes would read the same iterable dataset; ranks would get the same batches.
    """

    def __init__(self, store: FactoryData, config: DataConfig, share: Share) -> None:
        self._store = store
        self._data = store.parts["train"]
        self._workers = config.workers
        self._share = share
        self._rows = share.of_batch(config.batch_size)
        self._reading: Iterator[Read] | None = None
        if is_map_style(self._data):
            self._order = BatchOrder(len(self._data), config.batch_size, share, "examples")
            self.per_pass = self._order.per_pass
        elif isinstance(self._data, IterableDataset):
            _require_one_worker(store, config)
        else:
            _require_own_share(store, share.shards)

    def __next__(self) -> Batch:
        what = f"{self._store.setting}: reading batch {self.drawn} of the training data failed"
        with user_code(what):
            if self._reading is None:
                self._reading = self._begin()
            read = next(self._reading, None)
        if read is None:
            raise UserError(
                f"{self._store.setting}: the training data has no example for this rank, number {self._share.shard} of "
                f"{self._share.shards}; give it more data"
            )
        self.drawn += 1
        self.reader_state = read[1]
        return to_batch(read[0], self._store.setting, self._store.classes, self._rows)

    def close(self) -> None:
        """End the processes that read; the batches continue after the last one drawn."""
        self._reading = None

    def _begin(self) -> Iterator[Read]:
        if is_map_style(self._data):
            order = self._order
            requests = ((order.seed(number), order.numbers(number).tolist()) for number in count(self.drawn))
            return iter(read_numbered(self._data, requests, self._workers))
        if self.drawn and self.reader_state is None:
            logger.warning(
                f"{self._store.setting}: the training data has no state_dict and load_state_dict: reading "
                f"{self.drawn} batches again, to continue after them"
            )
        if not isinstance(self._data, IterableDataset):
            return read_passes(self._data, self.drawn, self.reader_state)
        shard, shards = (0, 1) if self._store.shards_itself else (self._share.shard, self._share.shards)
        stream = Stream(self._data, shard, shards, self._rows, None, self.drawn, self.reader_state)
        (seed,) = np.random.SeedSequence((*self._share.seed, self._share.rank, self.drawn)).generate_state(1).tolist()
        return iter(read_stream(stream, self._workers, seed))


class DatasetValidation:
    """One rank's share of the validation batches of a user's data; they are read each time that they are iterated.

    Args:
        store: the data.
        config: batch size and number of processes.
        rank: rank of this process in its group.
        size: number of ranks of the group.
        items: maximum number of examples of all ranks together; None for `VALIDATION_EXAMPLES`.

    Raises:
        UserError: there are fewer examples than ranks; several processes would read the same iterable dataset; ranks
            would get the same batches.
    """

    def __init__(self, store: FactoryData, config: DataConfig, rank: int, size: int, items: int | None) -> None:
        self._store = store
        data, rows = store.parts["validation"], config.batch_size
        most = items or VALIDATION_EXAMPLES
        self._most = len(range(rank, most, size))
        self._read: Callable[[], Iterator[Read]]
        if is_map_style(data):
            require_one_each(len(data), size, f"{store.setting} gives {len(data)} validation examples")
            chosen = evenly_spread(len(data), most)[rank::size].tolist()
            requests = [((begin,), chosen[begin : begin + rows]) for begin in range(0, len(chosen), rows)]
            self._batches = len(requests)
            loader = read_numbered(data, requests, config.workers)
            self._read = lambda: iter(loader)
        elif isinstance(data, IterableDataset):
            _require_one_worker(store, config)
            self._batches = -(-self._most // rows)
            shard, shards = (0, 1) if store.shards_itself else (rank, size)
            stream = read_stream(Stream(data, shard, shards, rows, self._most), config.workers)
            self._read = lambda: iter(stream)
        else:
            _require_own_share(store, size)
            self._batches = _length(data) or -(-self._most // (rows // size))
            self._read = lambda: ((batch, None) for batch in data)

    def __len__(self) -> int:
        """Return the number of batches, or a bound where it is not known."""
        return self._batches

    def __iter__(self) -> Iterator[Batch]:
        reading: Iterator[Read] | None = None
        examples = 0
        while examples < self._most:
            with user_code(f"{self._store.setting}: reading the validation data failed"):
                reading = self._read() if reading is None else reading
                read = next(reading, None)
            if read is None:
                return
            batch = to_batch(read[0], self._store.setting, self._store.classes)
            examples += len(batch.target)
            yield batch


def _require_one_worker(store: FactoryData, config: DataConfig) -> None:
    if config.workers > 1:
        raise UserError(
            f"data.workers = {config.workers}, but {store.setting} returned an iterable dataset, which each process "
            "would read whole; use --data.workers=1, or return a loader with processes of its own"
        )


def _require_own_share(store: FactoryData, ranks: int) -> None:
    if ranks > 1 and not store.shards_itself:
        raise UserError(
            f"{store.setting} returned a loader, and all {ranks} ranks would get the same batches; give the function a "
            "parameter `share`, and load this rank's share only: share.shard of share.shards for training, share.rank "
            "of share.size for validation"
        )


def _length(loader: Any) -> int | None:
    try:
        return len(loader)
    except TypeError:  # also of a DataLoader, whose dataset has none
        return None
