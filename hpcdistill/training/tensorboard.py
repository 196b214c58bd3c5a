"""The records of the metrics once more, as event files for TensorBoard."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpcdistill.errors import UserError
from hpcdistill.storage.metrics import Record

logger = logging.getLogger(__name__)


def require_tensorboard() -> None:
    """See that the optional package is there.

    Raises:
        UserError: it is not, or does not load.
    """
    try:
        import tensorboard  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"train.tensorboard = true: {error}; pip install 'hpcdistill[tensorboard]', or leave train.tensorboard out"
        ) from None


class Events:
    """One group's event files; what a former start has told of later steps is no longer shown.

    A disk that takes no more costs events and a warning, not the run.

    Args:
        folder: where; it is made.
        step: of the restart, 0 for a new run.

    Raises:
        OSError: the folder or the file cannot be made.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        self._writer = SummaryWriter(folder, purge_step=step + 1)
        self._complete = True

    def record(self, step: int, values: Record) -> None:
        """Tell each number of `values`, those of nested ones as "key/subkey"."""
        with self._surviving():
            for name, number in _numbers(values):
                self._writer.add_scalar(name, number, step)

    def close(self) -> None:
        """Write what is still under way."""
        with self._surviving():
            self._writer.close()

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # of TensorBoard's thread, which told it to nobody before
            if self._complete:
                logger.warning(f"TensorBoard's events are missing from {self._folder} from now on: {error}")
            self._complete = False


def _numbers(values: Record, prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{key}", value
