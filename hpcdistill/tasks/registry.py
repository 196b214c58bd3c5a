"""Registry of tasks: the kinds of data that can be trained on, by the format of their stores."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from hpcdistill.config.data import DataConfig
from hpcdistill.data.batches import Share
from hpcdistill.data.datasets.factory import FactoryData
from hpcdistill.data.store import ANY_COMMAND, StoreFile, stored_format
from hpcdistill.discovery import import_siblings
from hpcdistill.errors import UserError
from hpcdistill.tasks.dataset import DatasetTask
from hpcdistill.tasks.task import Task

logger = logging.getLogger(__name__)

TaskClass = TypeVar("TaskClass", bound=type[Task])

_TASKS: dict[str, Callable[[Path], Task]] = {}


def register(store: type[StoreFile]) -> Callable[[TaskClass], TaskClass]:
    """Decorate the `Task` class that is for stores of class `store`; its constructor takes the open store."""

    def add(task: Any) -> Any:
        _TASKS[store.FORMAT] = lambda path: task(store(path))
        return task

    return add


def open_data(config: DataConfig, share: Share | None = None, warns: bool = True) -> Task:
    """Open the configured data and return its task.

    Args:
        config: names a store or a function.
        share: share of this rank in the training data, for a function; by default all of it.
        warns: warn of a store whose damage may be undetected; one rank of a run is enough.

    Raises:
        UserError: the store cannot be read, or the function fails or returns something else than data.
    """
    if config.path is not None:
        return open_task(config.path, warns)
    return DatasetTask(FactoryData(config, share or Share()))


def open_task(path: Path, warns: bool = True) -> Task:
    """Open the store at `path` and return its task.

    Args:
        path: the store.
        warns: warn of a store whose damage may be undetected; one rank of a run is enough.

    Raises:
        UserError: the file is missing, damaged or not a store.
    """
    kind = stored_format(path)
    if kind not in _TASKS:
        import_siblings(__name__)
    if kind not in _TASKS:
        raise UserError(f"data.path = {path}: HDF5, but not a store; make one with: {ANY_COMMAND} --output {path}")
    task = _TASKS[kind](path)
    if warns and task.store.doubt:
        logger.warning(task.store.doubt)
    return task
