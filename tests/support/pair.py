"""Sessions of two groups in one process, which exchange through files."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hpcdistill import Codistillation, Groups
from hpcdistill.distributed.communicator import Communicator
from hpcdistill.distributed.world import start_world

CPU = torch.device("cpu")
Pair = tuple[Codistillation, Codistillation]


def sole(world: Communicator, group: int, count: int = 2) -> Groups:
    """Make all ranks one of `count` groups that are worlds of their own."""
    return Groups.alone(world, group, count, CPU)


@contextmanager
def joined(world: Communicator, folder: Path, models: tuple[nn.Module, nn.Module], **options: Any) -> Iterator[Pair]:
    """Open the sessions of a student and its peer, with these models; `options` are arguments of the student's."""
    common: dict[str, Any] = {"interval": 1, "burn_in": 0, "transport": "files", "folder": world.bcast(folder)}
    common["max_staleness"] = 1 << 30  # steps take a millisecond here, and a snapshot many on a busy disk
    with ExitStack() as stack:
        student, peer = (
            stack.enter_context(Codistillation(model, sole(world, group), **(common | extra)))
            for group, (model, extra) in enumerate(zip(models, (options, {}), strict=True))
        )
        yield student, peer


def exchange_until(pair: Pair, done: Callable[[], bool]) -> None:
    """Make steps in both sessions until all ranks are `done`."""
    while not all(start_world().allgather(done())):  # bounded by the test's timeout
        for session in pair:
            session.step()
        time.sleep(1e-3)


def hear(pair: Pair) -> None:
    """Make steps in both sessions until the student has a teacher."""
    exchange_until(pair, lambda: bool(pair[0].staleness))
