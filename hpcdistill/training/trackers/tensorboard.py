"""TensorBoard event files with the numbers of the metrics."""

from __future__ import annotations

from pathlib import Path

from hpcdistill.training.trackers.tracker import Tracker


class TensorBoard(Tracker):
    """Event files of one group. Events of steps later than `step`, left by a former start, are hidden.

    Args:
        folder: folder of the files; it is made.
        step: step of the restart, 0 for a new run.

    Raises:
        OSError: the folder or a file cannot be made.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        super().__init__(f"TensorBoard's events in {folder}")
        self._writer = SummaryWriter(folder, purge_step=step + 1)

    def _write(self, step: int, numbers: dict[str, float]) -> None:
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, step)

    def _close(self) -> None:
        self._writer.close()
