"""Readers of a user's datasets and loaders: batches one after the other, in this process or in processes of torch."""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate, get_worker_info

from hpcdistill.storage.packed import pack, unpack

logger = logging.getLogger(__name__)

Read = tuple[Any, Tensor | None]
"""Inputs and target of a batch, and the packed state of the reader after it, if the reader has one."""
Request = tuple[tuple[int, ...], list[int]]
"""Seed of a batch, and the numbers of its examples."""


def read_numbered(dataset: Any, requests: Iterable[Request], workers: int) -> DataLoader[Read]:
    """Return a loader of the requested batches of a map-style dataset.

    In a process of its own, a batch is read with its seed in the generators of torch, NumPy and Python, so that a
    restart repeats what is random in it. The thread of this process leaves these generators to the training.
    """
    return _loader(_Numbered(dataset), workers, batch_sampler=requests, collate_fn=_collate_without_state)


def read_stream(stream: Stream, workers: int, seed: int = 0) -> DataLoader[Read]:
    """Return a loader of a stream's batches, which one process reads, or this one."""
    return _loader(stream, workers, batch_size=None, generator=torch.Generator().manual_seed(seed))


def read_passes(loader: Any, drawn: int, state: Tensor | None) -> Iterator[Read]:
    """Yield the batches of a user's loader, pass after pass, until a pass has none.

    Args:
        loader: the loader. A method `set_epoch` of it, of its sampler or of its dataset is told the pass.
        drawn: number of batches to pass over if there is no state.
        state: state of the loader after these, where it has `state_dict` and `load_state_dict`.
    """
    keeper, first, resumed = _Keeper(loader), 0, state is not None
    if state is not None:
        first, skipped = keeper.load(state), 0
    else:
        skipped = drawn
    for number in count(first):
        for each in (loader, getattr(loader, "sampler", None), getattr(loader, "dataset", None)):
            _set_epoch(each, number)
        empty = not resumed  # a state after the last batch of a pass
        resumed = False
        for batch in loader:
            empty = False
            if skipped:
                skipped -= 1
            else:
                yield batch, keeper.state(number)
        if empty:
            return


class Stream(IterableDataset[Read]):
    """Batches of an iterable dataset, of which each `shards`-th example is taken, pass after pass.

    Batches continue from one pass into the next, so that no example is left out.

    Args:
        dataset: the examples, in the same order on each rank. A method `set_epoch` is told the pass.
        shard: number of the first example that is taken.
        shards: distance of two examples that are taken.
        batch_size: examples in a batch.
        most: number of examples after which the only pass ends; None for passes without end.
        drawn: number of batches to pass over if there is no state.
        state: state of the dataset after these, where it has `state_dict` and `load_state_dict`.
    """

    def __init__(
        self,
        dataset: IterableDataset[Any],
        shard: int,
        shards: int,
        batch_size: int,
        most: int | None = None,
        drawn: int = 0,
        state: Tensor | None = None,
    ) -> None:
        self._dataset = dataset
        self._shard, self._shards = shard, shards
        self._batch_size = batch_size
        self._most = most
        self._drawn = drawn
        self._state = state

    def __iter__(self) -> Iterator[Read]:
        keeper, skipped, first, place = _Keeper(self._dataset), self._drawn * self._batch_size, 0, 0
        if self._state is not None:
            skipped, (first, place) = 0, keeper.load(self._state)
        taken: list[Any] = []
        for number in count(first) if self._most is None else [0]:
            _set_epoch(self._dataset, number)
            empty = not place
            for example in self._dataset:
                place += 1  # number of examples of the pass until now
                if (place - 1) % self._shards != self._shard:
                    continue
                empty = False
                if skipped:
                    skipped -= 1
                    continue
                taken.append(example)
                if len(taken) == self._batch_size:
                    yield default_collate(taken), keeper.state((number, place))
                    taken = []
                if self._most is not None and (place - 1) // self._shards + 1 == self._most:
                    break
            place = 0
            if empty:
                return
        if taken:
            yield default_collate(taken), None


class _Keeper:
    """Keeper of the state of a dataset or loader, where it has one that can be kept in a checkpoint."""

    def __init__(self, data: Any) -> None:
        self._data = data
        self._is_able: bool | None = None if hasattr(data, "state_dict") and hasattr(data, "load_state_dict") else False

    def state(self, place: Any) -> Tensor | None:
        """Return the state after the last batch, with the place that the reader adds to it."""
        if self._is_able is False:
            return None
        try:
            packed = pack({"place": place, "data": self._data.state_dict()})
            if self._is_able is None:
                unpack(packed)
                self._is_able = True
            return packed
        except Exception as error:
            logger.warning(
                f"the state_dict of the data, a {type(self._data).__name__}, cannot be kept in checkpoints "
                f"({type(error).__name__}: {error}): a restart reads again what has been read"
            )
            self._is_able = False
            return None

    def load(self, state: Tensor) -> Any:
        """Restore a state; return the place."""
        content = unpack(state)
        self._data.load_state_dict(content["data"])
        return content["place"]


class _Numbered(Dataset[Any]):
    """Map-style dataset that is read by requests."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __getitems__(self, request: Request) -> list[Any]:
        seed, numbers = request
        if get_worker_info() is not None:
            torch_seed, numpy_seed = np.random.SeedSequence(seed).generate_state(2).tolist()
            torch.manual_seed(torch_seed)
            np.random.seed(numpy_seed)
            random.seed(torch_seed)
        several = getattr(self._dataset, "__getitems__", None)
        return list(several(numbers)) if several else [self._dataset[number] for number in numbers]


def _collate_without_state(examples: list[Any]) -> Read:
    return default_collate(examples), None


def _loader(dataset: Dataset[Any], workers: int, **options: Any) -> DataLoader[Any]:
    if workers:
        # Not fork: a child must not have the MPI of its rank. Not forkserver: its children outlive a killed rank.
        options |= {
            "multiprocessing_context": "spawn",
            "worker_init_fn": _begin_worker,
            "persistent_workers": True,
        }
    return DataLoader(dataset, num_workers=workers, **options)


def _begin_worker(_: int) -> None:
    """Keep this process alive when signals ask the whole job to stop: its rank may need a last batch.

    Schedulers send these signals to every process. SIGTERM counts only if the rank sends it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_when_told, args=(os.getppid(),), daemon=True).start()


def _end_when_told(rank: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != rank:
        pass
    os._exit(0)


def _set_epoch(data: Any, number: int) -> None:
    if hasattr(data, "set_epoch"):
        data.set_epoch(number)
