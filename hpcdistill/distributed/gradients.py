"""Interface of gradient backends, which average gradients inside each group, and the registry of their names."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

import torch
from torch import nn

from hpcdistill.discovery import import_siblings
from hpcdistill.distributed.checks import is_of_mpi
from hpcdistill.distributed.one_rank import OneRank
from hpcdistill.distributed.progress import keep_mpi_going
from hpcdistill.errors import UserError
from hpcdistill.losses.vocab_parallel import VocabParallel

if TYPE_CHECKING:
    from hpcdistill.distributed.communicator import Communicator

Model = TypeVar("Model", bound=nn.Module)
Optimizer = TypeVar("Optimizer", bound=torch.optim.Optimizer)


class GradientBackend(Protocol):
    """Gradient backend of a group; the methods are collective over the group, and as `Groups` describes them."""

    def distribute(self, model: Model, optimizer: Optimizer, micro_batches: int) -> tuple[Model, Optimizer]:
        """Return model and optimizer for data-parallel training, after all ranks have got the leader's model.

        The model returned is called like `model`, and may be a wrapper that has `model` as its attribute `module`.
        The optimizer returned averages gradients before each step; `averaged_gradients` knows it.
        """

    def averaged_gradients(self, optimizer: torch.optim.Optimizer) -> AbstractContextManager[None]:
        """Return a context in which the gradients are averages, which `optimizer.step()` takes as they are."""

    def vocab_parallel(self, classes: int) -> VocabParallel:
        """Return the place of this rank's `classes` rows in a head that is split over the ranks of the group."""


@runtime_checkable
class WaitsInBackward(Protocol):
    """Gradient backend whose backward passes end when the averages are there."""

    on_wait: Callable[[], None]
    """Function to call when a backward pass has computed its last gradient, and waits for averages from then on."""


Starter = Callable[["Communicator", torch.device], GradientBackend]
"""Function that starts a backend: `(comm, device)`, with the meaning of `start_backend`."""

_starters: dict[str, Starter] = {}


def register_backend(name: str) -> Callable[[Starter], Starter]:
    """Return a decorator that registers a function, or a class, which starts the gradient backend `name`."""

    def register(starter: Starter) -> Starter:
        _starters[name] = starter
        return starter

    return register


def start_backend(name: str, comm: Communicator, device: torch.device) -> GradientBackend:
    """Start a gradient backend among the ranks of a group; `OneRank` where there is one.

    Collective over the group, once per process.

    Args:
        name: name under which the backend is registered, such as "horovod".
        comm: communicator of the group.
        device: device of this rank, on which the gradients are.

    Raises:
        UserError: there is no such backend.
        ModuleNotFoundError: a package that the backend needs is not installed.
    """
    if name not in _starters:
        import_siblings(__name__)
    if name not in _starters:
        raise UserError(f"there is no gradient backend {name!r}; use one of {', '.join(sorted(_starters))}")
    if comm.size > 1:
        return _starters[name](comm, device)
    if is_of_mpi(comm):
        keep_mpi_going()
    return OneRank()
