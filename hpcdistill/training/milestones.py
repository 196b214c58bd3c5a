"""Validations and checkpoints at their steps."""

from __future__ import annotations

import math
import time

from hpcdistill.codistill.session import Codistillation
from hpcdistill.config.schema import Config
from hpcdistill.distributed.stop import StopRequest
from hpcdistill.training.recorder import Recorder
from hpcdistill.training.restart import Restart
from hpcdistill.training.validation import Validation


class Milestones:
    """Steps after which a group validates its model or makes a checkpoint.

    Args:
        config: the run, whose last step is a milestone.
        validation: validates.
        peers: the session, whose models are compared.
        restart: makes checkpoints.
        recorder: records both.
        stop: ends a validation early.
    """

    def __init__(
        self,
        config: Config,
        validation: Validation,
        peers: Codistillation,
        restart: Restart,
        recorder: Recorder,
        stop: StopRequest,
    ) -> None:
        self._steps = config.train.steps
        self._validate_every = config.train.validate_every
        self._save_every = config.checkpoint.interval
        self._validation = validation
        self._peers = peers
        self._restart = restart
        self._recorder = recorder
        self._stop = stop

    def __contains__(self, step: int) -> bool:
        return self._validates(step) or self._saves(step)

    def reach(self, step: int, stopping: bool) -> bool:
        """Validate and save what is due after `step`. Collective over the group.

        Args:
            step: number of steps made.
            stopping: the group has agreed to stop: save, and leave a validation that is due to the next start.

        Returns:
            True if the training has to stop: as agreed before, or because a signal has ended the validation.
        """
        return self._validate_and_save(step, self._validates(step), self._saves(step), stopping)

    def catch_up(self, step: int) -> bool:
        """Make the validation that the last start has left; return whether to stop. Collective over the group."""
        return self._restart.owes_validation and self._validate_and_save(step, validates=True, saves=True)

    def _validates(self, step: int) -> bool:
        return step == self._steps or step % self._validate_every == 0

    def _saves(self, step: int) -> bool:
        return step == self._steps or step % self._save_every == 0

    def _validate_and_save(self, step: int, validates: bool, saves: bool, stopping: bool = False) -> bool:
        validated = None
        if validates and not stopping:
            validated = self._validation.validate(self._stop, self._recorder, self._peers.models)
        if validated is not None:
            self._recorder.record_validation(step, *validated)
        self._restart.owes_validation = validates and validated is None
        stopping = stopping or self._restart.owes_validation
        if validates or saves or stopping:
            begin, last = time.perf_counter(), stopping or step == self._steps
            loss = math.nan if validated is None else validated.loss
            if self._restart.save(step, loss, scheduled=saves or stopping, last=last):
                self._recorder.record_checkpoint(step, time.perf_counter() - begin)
        return stopping
