"""Trackers of a run by its configuration."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib import import_module
from typing import Any

from hpcdistill.config.schema import Config
from hpcdistill.distributed.groups import Groups
from hpcdistill.errors import UserError
from hpcdistill.storage.metrics import Record
from hpcdistill.storage.run_dir import RunDir
from hpcdistill.training.trackers.mlflow import MLflow
from hpcdistill.training.trackers.tensorboard import TensorBoard
from hpcdistill.training.trackers.tracker import RunFacts, Tracker
from hpcdistill.training.trackers.wandb import Wandb

logger = logging.getLogger(__name__)

OPENERS: dict[str, Callable[[Any, RunDir, RunFacts], Tracker]] = {
    "tensorboard": lambda _, run, facts: TensorBoard(run.tensorboard(facts.group), facts.step),
    "wandb": lambda project, run, facts: Wandb(project, run.path, facts),
    "mlflow": lambda experiment, run, facts: MLflow(experiment, run.path, facts),
}
"""Functions that open a tracker; its key in `train`, its package and the extra have the same name."""


def require_trackers(config: Config) -> None:
    """Check that the packages of all configured trackers can be imported.

    Raises:
        UserError: one cannot.
    """
    for name, value in _configured(config):
        try:
            import_module(name)
        except ImportError as error:
            raise UserError(
                f"train.{name} = {'true' if value is True else value}: {error}; pip install 'hpcdistill[{name}]', or "
                f"leave train.{name} out"
            ) from None


def open_trackers(config: Config, groups: Groups, header: Record, step: int) -> list[Tracker]:
    """Open the configured trackers on the leader of each group. Collective over the world.

    Args:
        config: the run.
        groups: the groups.
        header: header of the metrics, with all starts of the run; empty on ranks that are not leaders.
        step: number of steps made before this start.

    Returns:
        The trackers that could be opened; there is a warning for each other one.
    """
    trackers = []
    for name, value in _configured(config):
        if groups.world.rank:
            groups.world.Barrier()  # rank 0 makes what groups share, such as MLflow's experiment
        if groups.is_leader:
            path = config.run_dir.absolute()
            try:
                identity = f"{path} g{groups.group} {header['starts'][0]['time']}"
                facts = RunFacts(path.name, groups.group, identity, step, header)
                trackers.append(OPENERS[name](value, RunDir(config.run_dir), facts))
            except Exception as error:  # whatever another program raises
                logger.warning(f"train.{name}: no records go there in this start of the run: {error}")
        if not groups.world.rank:
            groups.world.Barrier()
    return trackers


def _configured(config: Config) -> list[tuple[str, Any]]:
    return [(name, value) for name in OPENERS if (value := getattr(config.train, name))]
