"""Two groups in one process, which teach each other through files."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from mpi4py import MPI
from torch import nn

from hpcdistill import Codistillation, Groups

CPU = torch.device("cpu")
Pair = tuple[Codistillation, Codistillation]


def sole(world: MPI.Intracomm, group: int, count: int = 2) -> Groups:
    """All ranks as one of `count` groups, each of which is a world of its own."""
    return Groups.alone(world, group, count, CPU)


@contextmanager
def joined(world: MPI.Intracomm, folder: Path, models: tuple[nn.Module, nn.Module], **options: Any) -> Iterator[Pair]:
    """A student and its peer, of these models; `options` are the student's."""
    common: dict[str, Any] = {"interval": 1, "burn_in": 0, "transport": "files", "folder": world.bcast(folder)}
    with ExitStack() as stack:
        student, peer = (
            stack.enter_context(Codistillation(model, sole(world, group), **(common | extra)))
            for group, (model, extra) in enumerate(zip(models, (options, {}), strict=True))
        )
        yield student, peer


def exchange_until(pair: Pair, done: Callable[[], bool]) -> None:
    """Let both make steps until all ranks are `done`."""
    while not MPI.COMM_WORLD.allreduce(done(), op=MPI.LAND):  # bounded by the test's timeout
        for session in pair:
            session.step()
        time.sleep(1e-3)


def hear(pair: Pair) -> None:
    """Let both make steps until the student has its teacher."""
    exchange_until(pair, lambda: bool(pair[0].staleness))
