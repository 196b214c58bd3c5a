"""Callback and strategies for Lightning: codistillation, and gradients that Horovod or DDP averages in each group."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from hpcdistill.codistill.session import Codistillation
from hpcdistill.distributed.groups import Groups
from hpcdistill.errors import UserError
from hpcdistill.integrations.checks import require_different, require_ranks_of_mpi

try:
    from lightning.fabric.plugins import ClusterEnvironment
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.callbacks import GradientAccumulationScheduler
    from lightning.pytorch.strategies import (
        DDPStrategy,
        DeepSpeedStrategy,
        FSDPStrategy,
        ModelParallelStrategy,
        ParallelStrategy,
    )
    from lightning.pytorch.utilities import rank_zero_only
except ModuleNotFoundError as error:
    raise UserError(
        f"hpcdistill.integrations.lightning needs {error.name}; pip install 'hpcdistill[lightning]'"
    ) from error


class CodistillationCallback(Callback):
    """Callback that opens a session for `trainer.fit` and gives it to the module as `peers`.

    ```python
    def training_step(self, batch, _):
        inputs, target = batch
        teachers = self.peers.predict(inputs)
        return codistillation_loss(self(inputs), target, teachers, distill_weight=self.peers.weight)
    ```

    The teachers' predictions are what the module's `forward` returns. The session counts each batch after which an
    optimizer has stepped, and its state is in the checkpoints. `trainer.fit` ends when all groups of the job have ended
    it. The `default_root_dir` of the groups must differ.

    Args:
        groups: the groups.
        options: other arguments of `Codistillation`: interval, burn_in, weight …
    """

    def __init__(self, groups: Groups, **options: Any) -> None:
        self._groups = groups
        self._options = options
        self._state: dict[str, Any] = {}
        self._global_step = 0
        self._closing = ExitStack()
        self.peers: Codistillation | None = None
        """Session of the running or last `trainer.fit`."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the session, at the step of the checkpoint from which the training continues."""
        if isinstance(trainer.strategy, DeepSpeedStrategy | FSDPStrategy | ModelParallelStrategy):
            raise UserError(
                f"{type(trainer.strategy).__name__} splits the model over ranks, and its parts cannot be published; "
                "use HorovodStrategy(groups) or GroupDDPStrategy(groups)"
            )
        if (trainer.world_size, trainer.global_rank) != (self._groups.size, self._groups.rank):
            raise UserError(
                f"the strategy {type(trainer.strategy).__name__} takes this process for rank {trainer.global_rank} of "
                f"{trainer.world_size}, but it is rank {self._groups.rank} of {self._groups.size} of its group; "
                "use HorovodStrategy(groups) or GroupDDPStrategy(groups)"
            )
        require_different(self._groups, "default_root_dir", str(trainer.default_root_dir))
        self.peers = self._closing.enter_context(Codistillation(pl_module, self._groups, **self._options))
        pl_module.peers = self.peers  # type: ignore[assignment]
        if self._state:
            self.peers.load_state_dict(self._state)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note at which step the training begins."""
        self._global_step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Count the step, if the batch was the last of a step."""
        if trainer.global_step > self._global_step:
            self._global_step = trainer.global_step
            assert self.peers is not None
            self.peers.step()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the session, together with the other groups."""
        self._closing.close()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the session of a training that had nothing left to do."""
        self._closing.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Abandon the session at once."""
        self._closing.__exit__(type(exception), exception, exception.__traceback__)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the session."""
        return {} if self.peers is None else self.peers.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state of a session until one is opened."""
        self._state = state_dict


class GroupEnvironment(ClusterEnvironment):
    """Environment in which the ranks of a group are all processes, whatever has launched them.

    Args:
        groups: the groups.
    """

    creates_processes_externally = True

    def __init__(self, groups: Groups) -> None:
        require_ranks_of_mpi(groups)
        self._groups = groups
        self._address = groups.from_leader(_free_address)

    @property
    def main_address(self) -> str:
        """Host of the leader."""
        return self._address[0]

    @property
    def main_port(self) -> int:
        """Port that was free on the leader's host when the environment was made."""
        return self._address[1]

    @staticmethod
    def detect() -> bool:
        """Return False: only a strategy chooses this environment."""
        return False

    def world_size(self) -> int:
        """Return the number of ranks of the group."""
        return self._groups.size

    def set_world_size(self, size: int) -> None:
        """Do nothing: the groups are given."""

    def global_rank(self) -> int:
        """Return the rank in the group."""
        return self._groups.rank

    def set_global_rank(self, rank: int) -> None:
        """Do nothing: the groups are given."""

    def local_rank(self) -> int:
        """Return the rank in the group: as on one node, so that only the leader prepares data and writes."""
        return self._groups.rank

    def node_rank(self) -> int:
        """Return 0: the group counts as one node."""
        return 0


class HorovodStrategy(ParallelStrategy):
    """Strategy for the ranks of a group: Horovod averages their gradients while the backward pass is running.

    Distributed samplers, checkpoints, loggers and `self.log(..., sync_dist=True)` know the ranks of the group only.
    Metrics of torchmetrics are those of a rank.

    Args:
        groups: the groups.
        options: other arguments of `ParallelStrategy`, such as `precision_plugin`.

    Raises:
        UserError: in `trainer.fit`, the number of accumulated batches changes between epochs.
    """

    is_distributed = True  # so that Lightning adds distributed samplers

    def __init__(self, groups: Groups, **options: Any) -> None:
        super().__init__(parallel_devices=[groups.device], cluster_environment=GroupEnvironment(groups), **options)
        self._groups = groups
        self._averagers: list[torch.optim.Optimizer] = []
        self._is_accumulating = False

    @property
    def root_device(self) -> torch.device:
        """Device of the rank."""
        return self._groups.device

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Place of the rank among those that share the data."""
        return {"num_replicas": self._groups.size, "rank": self._groups.rank}

    def set_world_ranks(self) -> None:
        """Make the leader the process that Lightning lets write and log."""
        rank_zero_only.rank = self._groups.rank  # type: ignore[attr-defined]

    def model_to_device(self) -> None:
        """Move the model to the device."""
        assert self.model is not None
        self.model.to(self.root_device)

    def setup_optimizers(self, trainer: Trainer) -> None:
        """Make the optimizers, and for each another one that never steps, but averages its gradients."""
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        if any(isinstance(each, GradientAccumulationScheduler) for each in callbacks):
            raise UserError(
                "GradientAccumulationScheduler does not work with HorovodStrategy; "
                "use Trainer(accumulate_grad_batches=...), or GroupDDPStrategy(groups)"
            )
        super().setup_optimizers(trainer)
        assert self.lightning_module is not None
        self._averagers = [
            self._groups.distribute(self.lightning_module, optimizer, trainer.accumulate_grad_batches)[1]
            for optimizer in self.optimizers
        ]

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Let gradients accumulate in the block."""
        self._is_accumulating = True
        try:
            yield
        finally:
            self._is_accumulating = False

    def post_backward(self, closure_loss: Tensor) -> None:
        """Wait for the average gradients before they are clipped, unless batches follow that belong to the step."""
        if not self._is_accumulating:
            for averager in self._averagers:
                with self._groups.averaged_gradients(averager):
                    pass

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """Return the mean or the sum of the ranks' values, or the largest or smallest. Collective over the group."""
        values = torch.stack(self._gather(torch.as_tensor(tensor)))
        name = str(reduce_op).rpartition(".")[2].lower()
        if name in ("mean", "avg"):
            return values.mean(0, dtype=None if values.is_floating_point() else torch.float32)
        reductions: dict[str, Any] = {"sum": torch.sum, "max": torch.amax, "min": torch.amin}
        return reductions[name](values, 0)

    def all_gather(self, tensor: Tensor, group: Any = None, sync_grads: bool = False) -> Tensor:
        """Return the ranks' tensors, stacked, without gradient. Collective over the group."""
        if sync_grads:
            raise UserError("HorovodStrategy gathers without gradients; leave sync_grads out")
        return torch.stack(self._gather(tensor))

    def barrier(self, name: str | None = None) -> None:
        """Wait for all ranks of the group."""
        self._groups.comm.Barrier()

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """Return the object of rank `src`. Collective over the group."""
        return self._groups.comm.allgather(obj)[src]

    def _gather(self, tensor: Tensor) -> list[Tensor]:
        return [each.to(self.root_device) for each in self._groups.comm.allgather(tensor.detach().cpu())]


class GroupDDPStrategy(DDPStrategy):
    """`DDPStrategy` whose processes are the ranks of a group.

    Args:
        groups: the groups.
        options: other arguments of `DDPStrategy`.
    """

    def __init__(self, groups: Groups, **options: Any) -> None:
        super().__init__(parallel_devices=[groups.device], cluster_environment=GroupEnvironment(groups), **options)
        self._groups = groups

    @property
    def root_device(self) -> torch.device:
        """Device of the rank."""
        return self._groups.device

    @property
    def num_processes(self) -> int:
        """Number of ranks, among which Lightning shares out the cores."""
        return self._groups.size

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Place of the rank among those that share the data."""
        return {"num_replicas": self._groups.size, "rank": self._groups.rank}


def _free_address() -> tuple[str, int]:
    """Return this host's name, and a port that is free for now."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return socket.gethostname(), listener.getsockname()[1]
