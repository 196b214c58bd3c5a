"""The kinds of data that can be trained on."""

from __future__ import annotations

from pathlib import Path

from hpcdistill.data.image_store import ImageStore
from hpcdistill.data.rows import RowStore
from hpcdistill.data.store import TokenStore
from hpcdistill.data.store_file import stored_format
from hpcdistill.tasks.clicks import ClickTask
from hpcdistill.tasks.images import ImageTask
from hpcdistill.tasks.language import LanguageTask
from hpcdistill.tasks.task import Task


def open_task(path: Path) -> Task:
    """The task that the store at `path` is for.

    Raises:
        UserError: there is no store that can be read.
    """
    kind = stored_format(path)
    if kind == RowStore.FORMAT:
        return ClickTask(RowStore(path))
    if kind == ImageStore.FORMAT:
        return ImageTask(ImageStore(path))
    return LanguageTask(TokenStore(path))
