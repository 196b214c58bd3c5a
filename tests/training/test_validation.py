"""Validation: the mean over all ranks' batches, a limit of items, and an early end after a signal."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import saved_models
from hpcdistill.config.data import DataConfig
from hpcdistill.data.batches import Batch
from hpcdistill.data.images.store import Kind, write_images
from hpcdistill.distributed.communicator import Communicator
from hpcdistill.distributed.groups import Groups
from hpcdistill.distributed.stop import SIGNALS, StopRequest
from hpcdistill.models.registry import config_class
from hpcdistill.tasks.objective import Binary
from hpcdistill.tasks.registry import open_task
from hpcdistill.training.recorder import Recorder
from hpcdistill.training.validation import Validation

CPU = torch.device("cpu")


class Batches(list[Batch]):
    """Validation batches that count how many were taken; taking one of them sends this process a signal."""

    taken = 0

    def __init__(self, batches: list[Batch], signal_at: int | None = None) -> None:
        super().__init__(batches)
        self._signal_at = signal_at

    def __iter__(self) -> Iterator[Batch]:
        for self.taken, batch in enumerate(super().__iter__(), start=1):
            if self.taken == self._signal_at:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch


def batch(rank: int, number: int) -> Batch:
    return Batch((torch.full((2,), float(rank + number)),), torch.tensor([0.0, 1.0]))


@pytest.fixture
def alone(world: Communicator) -> Groups:
    """Make all ranks one group."""
    return Groups.split(world, (world.size,), CPU)


@pytest.fixture
def recorder(alone: Groups, tmp_path: Path) -> Iterator[Recorder]:
    config = config_class()(run_dir=tmp_path, groups=1, data={"path": tmp_path}, codistill={"weight": 0})
    objective = Binary()
    task = SimpleNamespace(unit="row", objective=objective)
    parts: Any = SimpleNamespace(task=task, objective=objective, model=nn.Identity(), optimizer=None)
    with Recorder(config, alone, parts, {}, step=0) as recorder:
        yield recorder


def test_the_loss_is_the_mean_over_all_ranks_however_many_batches_each_has(alone: Groups, recorder: Recorder) -> None:
    by_rank = [[batch(rank, number) for number in range(rank % 3)] for rank in range(1, alone.size + 1)]
    validation = Validation(nn.Identity(), Binary(), Binary(), Batches(by_rank[alone.rank]), alone)
    with StopRequest() as stop:
        validated = validation.validate(stop, recorder, {})
    everything = [one for batches in by_rank for one in batches]
    losses = [Binary().cross_entropy(*one.inputs, one.target) for one in everything]
    assert validated == (pytest.approx(torch.cat(losses).mean().item()), {})


def test_a_signal_to_one_rank_ends_a_validation_of_all(alone: Groups, recorder: Recorder) -> None:
    last = alone.rank == alone.size - 1
    batches = Batches([batch(0, number) for number in range(50)], signal_at=10 if last else None)
    model = nn.Identity()
    with StopRequest() as stop:
        assert Validation(model, Binary(), Binary(), batches, alone).validate(stop, recorder, {}) is None
    assert batches.taken == 10
    assert model.training


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_before_a_validation_ends_it_at_once(
    number: signal.Signals, alone: Groups, recorder: Recorder
) -> None:
    batches = Batches([batch(0, number) for number in range(50)])
    with StopRequest() as stop:
        os.kill(os.getpid(), number)
        assert Validation(nn.Identity(), Binary(), Binary(), batches, alone).validate(stop, recorder, {}) is None
    assert batches.taken == 0


def images(path: Path) -> Path:
    pixels, labels = np.arange(100, dtype=np.uint8).reshape(100, 1, 1, 1), np.zeros(100, np.int64)
    kind = Kind.of(["a", "b"], (1, 1, 1), np.bincount(pixels.ravel(), minlength=256)[None])
    write_images(path, [("train", pixels, labels), ("validation", pixels, labels)], kind, "")
    return path


STORES = {"token": saved_models.text, "row": saved_models.clicks, "image": images}
AVAILABLE = {"token": 12, "row": 100, "image": 100}
"""Items of the validation part."""


@pytest.mark.parametrize("unit", STORES)
@pytest.mark.parametrize("items", [None, 1, 7, 11, 10_000])
def test_validation_items_are_limited_and_evenly_spread(unit: str, items: int | None, tmp_path: Path) -> None:
    task = open_task(STORES[unit](tmp_path / "store.h5"))
    config = DataConfig(path=tmp_path, sequence_length=8, batch_size=3)
    with task.store:
        shares = [task.validation(config, rank, 2, items) for rank in range(2)]
        everything = torch.cat([batch.inputs[0] for batch in task.validation(config)])
        sizes = [sum(len(batch.target) for batch in share) for share in shares]
        available = AVAILABLE[unit]
        count = available if items is None else min(items, available)
        assert sum(sizes) == count
        assert abs(sizes[0] - sizes[1]) <= 1
        assert [len(share) for share in shares] == [-(-size // 3) for size in sizes]
        expected = everything[np.linspace(0, available - 1, count).astype(np.int64)]
        for rank, share in enumerate(shares):
            found = [batch.inputs[0] for batch in share]
            assert torch.equal(torch.cat(found) if found else expected[:0], expected[rank::2])
