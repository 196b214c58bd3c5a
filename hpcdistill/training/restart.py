"""Saving and restoring of all that a group needs to resume training as if it had never stopped."""

from __future__ import annotations

import logging
import math
import threading
from types import TracebackType

import torch
from torch import nn

from hpcdistill.codistill.session import Codistillation
from hpcdistill.config.schema import Config
from hpcdistill.data.batches import TrainingBatches
from hpcdistill.distributed.groups import Groups
from hpcdistill.distributed.launch import end_job
from hpcdistill.errors import UserError
from hpcdistill.exchange.layout import Layout
from hpcdistill.models.finite import first_not_finite
from hpcdistill.models.saved import describe_model
from hpcdistill.storage.checkpoints import Checkpoints
from hpcdistill.storage.run_dir import RunDir
from hpcdistill.storage.state_file import State, on_host
from hpcdistill.training.optimizer import load_optimizer_state

logger = logging.getLogger(__name__)

PATIENCE = 60.0
"""Seconds that training waits for a slow disk, so that the best weights so far are not lost."""

LAST_SECONDS = 1800.0
"""Seconds that the last checkpoint may take; a file server that needs longer is considered lost."""


class Restart:
    """Checkpoints of one group's training; all methods are collective over the group.

    Training waits while its state is copied to host memory; a thread of the leader then writes it. At the end of the
    block, as a context manager, it waits for that thread.

    Args:
        config: configuration of the run.
        groups: the world and its groups; the leader writes and reads the files.
        model: the student.
        average: average of its weights, or None.
        optimizer: optimizer of the student.
        batches: training data of the student.
        identity: identity of the data that the batches are from.

    Attributes:
        owes_validation: True if a signal prevented the validation of the last step; saved and restored.
    """

    def __init__(
        self,
        config: Config,
        groups: Groups,
        model: nn.Module,
        average: nn.Module | None,
        optimizer: torch.optim.Optimizer,
        batches: TrainingBatches,
        identity: str,
    ) -> None:
        self._config = config
        self._groups = groups
        self._model = model
        self._average = average
        self._optimizer = optimizer
        self._batches = batches
        owner = {
            "tensors": Layout.of(model).signature,
            "optimizer": config.optimizer.name,
            "groups": groups.count,
            "ranks per group": groups.size,
            "seed": config.seed,
            "identity of the data": identity,
            "data.batch_size": config.data.batch_size,
            "data.sequence_length": config.data.sequence_length,
            "data.image_size": config.data.image_size,
            "data.partition": config.data.partition,
        }
        self._run = RunDir(config.run_dir)
        self._checkpoints = Checkpoints(self._run, groups.group, config.checkpoint.keep, owner)
        self._writing: threading.Thread | None = None
        self._lowest = math.inf  # validation loss of the best checkpoint, on the leader
        self._session: Codistillation | None = None
        self._session_state: State = {}
        self.owes_validation = False

    def attach(self, session: Codistillation, step: int) -> None:
        """Continue a session after `step` steps, from its restored state; its state is part of checkpoints from now on.

        Args:
            session: the session of the student.
            step: number of steps made.
        """
        of_model = {"step": step, "tensors": session.state_dict()["tensors"]}  # compared with the checkpoint already
        session.load_state_dict(self._session_state | of_model)
        self._session = session

    def save(self, step: int, validation: float = math.nan, scheduled: bool = True, last: bool = False) -> bool:
        """Begin to write the checkpoint of `step`. If the disk is full or busy, it is skipped with a warning.

        Args:
            step: number of steps made.
            validation: validation loss of these weights in nats, NaN if there is none; the lowest so far makes this
                the best checkpoint.
            scheduled: write the checkpoint even if these weights are not the best.
            last: wait first until the previous checkpoint has been written, because this start of the run ends here.

        Returns:
            True if this rank has begun to write a checkpoint.

        Raises:
            UserError: a weight is not finite.
        """
        require_finite(self._model, self._groups.group, step)
        mine = _rng_state(self._groups.device)
        if self._batches.reader_state is not None:
            mine["reader"] = self._batches.reader_state
        ranks = self._groups.comm.gather(mine)
        if ranks is None:
            return False
        if not math.isfinite(validation):
            validation = math.inf  # never the lowest
        if self._writing and (last or validation < self._lowest):
            self._writing.join(LAST_SECONDS if last else PATIENCE)
        is_best = validation < self._lowest
        if not (scheduled or is_best):
            return False
        if self._writing and self._writing.is_alive():
            logger.warning(f"no checkpoint at step {step}: the disk is still busy with the one before")
            return False
        lowest = validation if is_best else self._lowest
        state = on_host(self._state(step, ranks, lowest))
        # A daemon thread: Python waits for all others when it ends, and a file server may never answer.
        arguments = (state, scheduled, is_best)
        self._writing = threading.Thread(target=self._write, args=arguments, name="checkpoint", daemon=True)
        self._writing.start()
        return True

    def _state(self, step: int, ranks: list[dict[str, torch.Tensor]], lowest: float) -> State:
        optimizer = self._optimizer.state_dict()
        return {
            "step": step,
            "batches_drawn": self._batches.drawn,
            "config": self._config.model_dump(mode="json"),
            "model": self._model.state_dict(),
            **describe_model(self._model),
            **({"average": self._average.state_dict()} if self._average else {}),
            "optimizer": {
                "state": {str(index): values for index, values in optimizer["state"].items()},
                "param_groups": optimizer["param_groups"],
            },
            "ranks": {str(rank): of_rank for rank, of_rank in enumerate(ranks)},
            "lowest_validation_loss": lowest,
            "owes_validation": self.owes_validation,
            **({"session": self._session.state_dict()} if self._session else {}),
        }

    def _write(self, state: State, scheduled: bool, is_best: bool) -> None:
        try:
            if scheduled:
                self._checkpoints.save(state["step"], state, is_best)
            else:
                self._checkpoints.save_best(state)
            self._lowest = state["lowest_validation_loss"]
        except OSError as error:
            logger.warning(f"no checkpoint at step {state['step']}: {error}")
        except BaseException as error:
            end_job(error)

    def resume(self, mode: str) -> int:
        """Restore the newest usable checkpoint; return its step, or 0 for a new run.

        Args:
            mode: "no", "yes" or "strict", as for `train`.

        Raises:
            UserError: the mode is "no" but there are checkpoints; or there are checkpoints but none is usable.
        """
        state = self._groups.from_leader(lambda: self._newest(mode))
        if state is None:
            return 0
        try:
            self._restore(state)
        except (
            AttributeError,
            KeyError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:  # a valid file of another program
            raise UserError(
                f"the checkpoint of step {state['step']} of group {self._groups.group} does not fit this version of "
                f"hpcdistill ({type(error).__name__}: {error}); restore another one, or choose another --run_dir"
            ) from None
        return int(state["step"])

    def _restore(self, state: State) -> None:
        self._model.load_state_dict(state["model"])
        if self._average and "average" in state:
            self._average.load_state_dict(state["average"])
        saved = state["optimizer"]
        moments = {int(index): values for index, values in saved.get("state", {}).items()}
        state_dict = {"state": moments, "param_groups": saved["param_groups"]}
        load_optimizer_state(self._config.optimizer, self._optimizer, state_dict)
        mine = state["ranks"][str(self._groups.rank)]
        self._batches.drawn, self._batches.reader_state = int(state["batches_drawn"]), mine.get("reader")
        _set_rng_state(mine)
        self._session_state = state.get("session", {})
        self.owes_validation = bool(state.get("owes_validation"))
        lowest = float(state["lowest_validation_loss"])
        if self._checkpoints.has_best and math.isfinite(lowest):
            self._lowest = lowest

    def __enter__(self) -> Restart:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writing:
            seconds = LAST_SECONDS if kind is None else PATIENCE
            self._writing.join(seconds)
            if self._writing.is_alive():
                logger.warning(f"the last checkpoint has not been written in {seconds:.0f} s, and is abandoned")

    def _newest(self, mode: str) -> State | None:
        if mode == "no":
            self._run.require_no_checkpoints(self._groups.group)
        state = None if mode == "no" else self._checkpoints.newest(strict=mode == "strict")
        self._checkpoints.remove_temporary_files()  # only where this start is not refused
        return state


def require_finite(model: nn.Module, group: int, step: int) -> None:
    """Check that all parameters of the model of `group` are finite after `step` steps.

    Raises:
        UserError: one is not.
    """
    if name := first_not_finite(dict(model.named_parameters())):
        raise UserError(
            f"group {group}: {name} is no longer finite at step {step}; lower --optimizer.lr and go on from the last "
            "checkpoint with --resume"
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
