"""What a group must remember to go on as if it had never stopped."""

from __future__ import annotations

import math
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch
from torch import nn

from hpcdistill.checkpoint import Checkpoints
from hpcdistill.config import Config
from hpcdistill.errors import UserError, warn
from hpcdistill.groups import Groups
from hpcdistill.job import end_job
from hpcdistill.run_dir import require_no_checkpoints
from hpcdistill.snapshot import Layout
from hpcdistill.state_file import State, on_host
from hpcdistill.tasks.task import TrainingBatches


class Restart:
    """Saves and restores one group's training; all methods are collective over the group.

    Training waits while its state is copied to the host's memory; a thread of the leader then writes it. A context
    manager, which at its end waits for that thread.

    Args:
        config: the run.
        groups: who is who; the leader writes and reads the files.
        model: the student.
        average: that of its weights, if there is one.
        optimizer: its optimizer.
        batches: its data.
    """

    def __init__(
        self,
        config: Config,
        groups: Groups,
        model: nn.Module,
        average: nn.Module | None,
        optimizer: torch.optim.Optimizer,
        batches: TrainingBatches,
    ) -> None:
        self._config = config
        self._groups = groups
        self._model = model
        self._average = average
        self._optimizer = optimizer
        self._batches = batches
        owner = {
            "tensors": [str(entry) for entry in Layout.of(model).entries],
            "optimizer": config.optimizer.name,
            "groups": groups.count,
            "ranks per group": groups.size,
        }
        self._checkpoints = Checkpoints(config.run_dir / "checkpoints", groups.group, config.checkpoint.keep, owner)
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._validation = self._lowest = math.inf

    def validated(self, loss: float) -> None:
        """Tell the model's validation loss; of the checkpoints, the next one with the lowest so far is the best."""
        self._validation = loss

    def save(self, step: int, last: bool = False) -> None:
        """Make a checkpoint of `step`; a disk that cannot take it, or not yet, costs the checkpoint, not the run.

        Args:
            step: which one.
            last: of this start of the run, and so worth waiting until the one before has been written.

        Raises:
            UserError: a weight is not finite, and nothing worth keeping is left to save.
        """
        _require_finite(self._model, self._groups.group, step)
        ranks = self._groups.comm.gather(_rng_state(self._groups.device))
        if ranks is None:
            return
        if self._writing and not last and not self._writing.done():
            warn(f"no checkpoint at step {step}: the disk is still busy with the one before")
            return
        state = on_host(self._state(step, ranks))
        self._writing = self._writer.submit(self._write, step, state, is_best=self._validation < self._lowest)

    def _state(self, step: int, ranks: list[dict[str, torch.Tensor]]) -> State:
        optimizer = self._optimizer.state_dict()
        return {
            "step": step,
            "batches_drawn": self._batches.drawn,
            "config": self._config.model_dump(mode="json"),
            "model": self._model.state_dict(),
            **({"average": self._average.state_dict()} if self._average else {}),
            "optimizer": {
                "state": {str(index): values for index, values in optimizer["state"].items()},
                "param_groups": optimizer["param_groups"],
            },
            "rng": {str(rank): generators for rank, generators in enumerate(ranks)},
            "lowest_validation_loss": min(self._validation, self._lowest),
        }

    def _write(self, step: int, state: State, is_best: bool) -> None:
        try:
            self._checkpoints.save(step, state, is_best)
            self._lowest = state["lowest_validation_loss"]
        except OSError as error:
            warn(f"no checkpoint at step {step}: {error}")
        except BaseException as error:
            end_job(error)

    def resume(self, mode: str) -> int:
        """The step to go on from; 0 for a new run.

        Args:
            mode: "no", "yes" or "strict", as for `train`.

        Raises:
            UserError: "no", but there are checkpoints already; or no usable checkpoint among those there are.
        """
        state = self._groups.from_leader(lambda: self._newest(mode))
        if state is None:
            return 0
        self._model.load_state_dict(state["model"])
        if self._average and "average" in state:
            self._average.load_state_dict(state["average"])
        saved = state["optimizer"]
        moments = {int(index): values for index, values in saved.get("state", {}).items()}
        self._optimizer.load_state_dict({"state": moments, "param_groups": saved["param_groups"]})
        self._batches.drawn = state["batches_drawn"]
        _set_rng_state(state["rng"][str(self._groups.rank)])
        self._lowest = state["lowest_validation_loss"]
        return int(state["step"])

    def __enter__(self) -> Restart:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.shutdown(wait=kind is None)

    def _newest(self, mode: str) -> State | None:
        self._checkpoints.remove_litter()
        if mode != "no":
            return self._checkpoints.newest(strict=mode == "strict")
        require_no_checkpoints(self._config.run_dir, self._checkpoints.paths())
        return None


def _require_finite(model: nn.Module, group: int, step: int) -> None:
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise UserError(
                f"group {group}: {name} is no longer finite at step {step}; lower --optimizer.lr and go on from the "
                "last checkpoint with --resume"
            )


def _rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _set_rng_state(state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
