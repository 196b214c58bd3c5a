"""The kinds of data that can be trained on."""

from __future__ import annotations

from pathlib import Path

from hpcdistill.data.images.store import ImageStore
from hpcdistill.data.rows.store import RowStore
from hpcdistill.data.store import ANY_COMMAND, stored_format
from hpcdistill.data.tokens.store import TokenStore
from hpcdistill.errors import UserError, warn
from hpcdistill.tasks.binary import ClickTask
from hpcdistill.tasks.images import ImageTask
from hpcdistill.tasks.language import LanguageTask
from hpcdistill.tasks.task import Task


def open_task(path: Path, warns: bool = True) -> Task:
    """The task that the store at `path` is for.

    Args:
        path: the store.
        warns: warn of a store in which damage may go unseen; of the ranks of a run one is enough.

    Raises:
        UserError: there is no store that can be read.
    """
    task = _task(path)
    if warns and task.store.doubt:
        warn(task.store.doubt)
    return task


def _task(path: Path) -> Task:
    kind = stored_format(path)
    if kind == RowStore.FORMAT:
        return ClickTask(RowStore(path))
    if kind == ImageStore.FORMAT:
        return ImageTask(ImageStore(path))
    if kind == TokenStore.FORMAT:
        return LanguageTask(TokenStore(path))
    raise UserError(f"data.path = {path}: HDF5, but not a store; make one with: {ANY_COMMAND} --output {path}")
