"""The folder of a run."""

from __future__ import annotations

import os
import tempfile
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
