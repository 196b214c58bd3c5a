"""The gradient backend "torch": torch's DistributedDataParallel inside each group."""

import atexit
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from hpcdistill.distributed.gradients import register_backend
from hpcdistill.distributed.process_group import open_process_group
from hpcdistill.errors import UserError
from hpcdistill.losses.vocab_parallel import VocabParallel

if TYPE_CHECKING:
    from hpcdistill.distributed.communicator import Communicator

Model = TypeVar("Model", bound=nn.Module)
Optimizer = TypeVar("Optimizer", bound=torch.optim.Optimizer)

EXIT_SECONDS = 10.0
"""Time for gloo's threads to finish at the end of the process; they need milliseconds, unless a rank is missing."""


@register_backend("torch")
class TorchBackend:
    """Gradient backend that averages by DistributedDataParallel during the backward pass; see `GradientBackend`.

    Args:
        comm: communicator of the group.
        device: device of this rank, on which the gradients are.

    Attributes:
        on_wait: see `WaitsInBackward`.

    Raises:
        UserError: the ranks cannot make a process group; see `open_process_group`.
    """

    def __init__(self, comm: "Communicator", device: torch.device) -> None:
        self._comm = comm
        self._process_group = open_process_group(comm, device)
        self.on_wait: Callable[[], None] = lambda: None
        self._averages: WeakKeyDictionary[torch.optim.Optimizer, GroupAverage] = WeakKeyDictionary()

    def distribute(self, model: Model, optimizer: Optimizer, micro_batches: int) -> tuple[Model, Optimizer]:
        """Return `model` inside DistributedDataParallel, and `optimizer` itself with hooks at its step."""
        average = GroupAverage(model, optimizer, micro_batches, self._process_group, lambda: self.on_wait())
        self._averages[optimizer] = average
        return cast(Model, average.model), optimizer

    @contextmanager
    def averaged_gradients(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """Make sure that the gradients are averages, as they usually are after the backward pass."""
        self._averages[optimizer].complete()
        yield

    def vocab_parallel(self, classes: int) -> VocabParallel:
        """Return the place of this rank's `classes` rows; the collectives are those of torch.distributed."""
        sizes = self._comm.allgather(classes)

        def all_gather(tensor: Tensor) -> Tensor:
            gathered = [torch.empty_like(tensor) for _ in sizes]
            dist.all_gather(gathered, tensor, group=self._process_group)
            return torch.stack(gathered)

        return VocabParallel(
            first_class=sum(sizes[: self._comm.rank]),
            classes=sum(sizes),
            all_gather=all_gather,
            all_reduce=lambda tensor: dist.all_reduce(tensor, group=self._process_group),
        )


_callbacks: WeakSet[Callable[..., Any]] = WeakSet()
"""Callbacks that a thread of gloo still holds."""


@atexit.register
def _wait_for_callbacks() -> None:
    """Wait until gloo's threads have let go of all callbacks: a thread that does so after Python has ended aborts."""
    end = time.monotonic() + EXIT_SECONDS
    while _callbacks and time.monotonic() < end:
        time.sleep(1e-3)


class GroupAverage:
    """Average over a group of the gradients of one optimizer's parameters.

    DistributedDataParallel averages during the backward pass of a step's last micro-batch. Gradients that it has not
    averaged are averaged when they are needed: after forward passes of the module inside, or fewer micro-batches.

    Args:
        model: the model.
        optimizer: optimizer of all or some of its parameters; the gradients of others are left alone.
        micro_batches: backward passes before each step.
        process_group: ranks of the group.
        on_wait: see `WaitsInBackward`.

    Attributes:
        model: `model` inside DistributedDataParallel.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        micro_batches: int,
        process_group: dist.ProcessGroup,
        on_wait: Callable[[], None] = lambda: None,
    ) -> None:
        self._process_group = process_group
        self._on_wait = on_wait
        self._micro_batches = micro_batches
        self._passes = 0  # forward passes of this step
        self._is_averaged = False
        updated = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        named = dict(model.named_parameters())
        self._parameters = {name: each for name, each in named.items() if id(each) in updated and each.requires_grad}
        self.model = _wrap(model, [name for name, each in named.items() if id(each) not in updated], process_group)
        self.model.register_comm_hook(None, self._average_bucket)
        self.model.register_forward_pre_hook(self._begin_pass)
        next(iter(self._parameters.values())).register_hook(self._note_gradient)
        optimizer.register_step_pre_hook(lambda *_: self.complete())
        optimizer.register_step_post_hook(self._note_gradient)

    def complete(self) -> None:
        """Average the gradients unless they are averages already. Collective over the group.

        Raises:
            UserError: DistributedDataParallel has waited for a gradient that was not computed.
        """
        is_waiting = self.model.require_backward_grad_sync and self._passes > 0
        self._passes = 0
        if self._is_averaged:
            return
        missing = [name for name, parameter in self._parameters.items() if parameter.grad is None]
        if is_waiting and missing:
            raise UserError(
                f"gradients = 'torch': the loss does not depend on {', '.join(missing[:3])}"
                f"{' …' if len(missing) > 3 else ''}, which DistributedDataParallel needs; freeze such parameters by "
                "requires_grad_(False), or use --gradients=horovod"
            )
        averages = []
        for parameter in self._parameters.values():
            if parameter.grad is None:  # another rank may have one
                parameter.grad = torch.zeros_like(parameter)
            averages.append((parameter.grad, *self._begin_average(parameter.grad)))
        for gradient, average, work in averages:
            work.wait()
            gradient.copy_(average)
        self._is_averaged = True

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _begin_pass(self, model: DistributedDataParallel, _: Any) -> None:
        """Choose whether the backward pass that belongs to this forward pass averages: the last of a step does."""
        if torch.is_grad_enabled():
            self._passes += 1
            model.require_backward_grad_sync = self._passes % self._micro_batches == 0

    # DistributedDataParallel looks at these annotations.
    def _average_bucket(self, _: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
        """Begin to average the gradients of a bucket, which lie in one buffer; return the future of the average."""
        self._is_averaged = bucket.is_last()
        gradient: Tensor = bucket.buffer()
        average, work = self._begin_average(gradient)
        if bucket.is_last():
            self._on_wait()

        def write_back(_: Any) -> Tensor:
            gradient.copy_(average)
            return gradient

        _callbacks.add(write_back)
        averaged: torch.futures.Future[Tensor] = work.get_future().then(write_back)
        return averaged

    def _begin_average(self, gradient: Tensor) -> tuple[Tensor, dist.Work]:
        """Begin to average a gradient; return the average, which overwrites it if it is not of bfloat16, and the work.

        The average of bfloat16 is float32, so that it is rounded once.
        """
        average = gradient.float() if gradient.dtype == torch.bfloat16 else gradient
        average.div_(self._process_group.size())
        return average, dist.all_reduce(average, group=self._process_group, async_op=True)

    def _note_gradient(self, *_: Any) -> None:
        """Note that gradients are those of this rank, or are about to be."""
        self._is_averaged = False


def _wrap(model: nn.Module, ignored: list[str], process_group: dist.ProcessGroup) -> DistributedDataParallel:
    """Return `model` in DistributedDataParallel, after the leader's parameters and buffers have been sent to all ranks.

    Args:
        model: the model.
        ignored: names of parameters that are neither sent nor averaged.
        process_group: ranks of the group.
    """
    if ignored:
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ignored)
    wrapped = DistributedDataParallel(model, process_group=process_group, gradient_as_bucket_view=True)
    wrapped.broadcast_buffers = False  # each rank keeps its own statistics
    return wrapped
