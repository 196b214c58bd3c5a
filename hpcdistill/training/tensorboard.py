"""TensorBoard event files with the numbers of the metrics."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpcdistill.errors import UserError
from hpcdistill.storage.metrics import Record

logger = logging.getLogger(__name__)


def require_tensorboard() -> None:
    """Check that the optional package tensorboard can be imported.

    Raises:
        UserError: it cannot.
    """
    try:
        import tensorboard  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"train.tensorboard = true: {error}; pip install 'hpcdistill[tensorboard]', or leave train.tensorboard out"
        ) from None


class Events:
    """Event files of one group. Events of steps later than `step`, left by a former start, are hidden.

    When the disk is full, events are lost, with a warning; the run goes on.

    Args:
        folder: folder of the files; it is made.
        step: step of the restart, 0 for a new run.

    Raises:
        OSError: the folder or a file cannot be made.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        self._writer = SummaryWriter(folder, purge_step=step + 1)
        self._complete = True

    def record(self, step: int, values: Record) -> None:
        """Write each number in `values`; nested ones are named "key/subkey"."""
        with self._surviving():
            for name, number in _numbers(values):
                self._writer.add_scalar(name, number, step)

    def close(self) -> None:
        """Write the pending events and close the files."""
        with self._surviving():
            self._writer.close()

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # of TensorBoard's thread, raised at the next call
            if self._complete:
                logger.warning(f"TensorBoard's events are missing from {self._folder} from now on: {error}")
            self._complete = False


def _numbers(values: Record, prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{key}", value
