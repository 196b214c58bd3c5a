"""The folder of a run: whether it takes files, and which checkpoints it holds."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hpcdistill.errors import UserError


def make_run_dir(path: Path) -> None:
    """Make the folder, and see that it takes files, before hours of training find out that it does not.

    Raises:
        UserError: it does not: read-only, full, over quota, or there is something else of that name.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(
            f"run_dir = {path} cannot be written to: {error.strerror}; make room there, or choose another --run_dir"
        ) from None


def checkpoint_paths(folder: Path, group: int) -> list[Path]:
    """A group's checkpoints in `folder`, newest first."""
    pattern = re.compile(rf"g{group}-step\d{{10}}\.h5")
    return sorted((path for path in folder.glob("*.h5") if pattern.fullmatch(path.name)), reverse=True)


def require_no_checkpoints(run_dir: Path, checkpoints: Sequence[Path]) -> None:
    """See that a new run does not begin where there is one.

    Raises:
        UserError: there are checkpoints.
    """
    if checkpoints:
        raise UserError(
            f"run_dir = {run_dir} holds a run already ({checkpoints[0].name}); "
            "add --resume to go on with it, or choose another --run_dir"
        )
