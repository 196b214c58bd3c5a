"""Ranks on a machine that has neither MPI nor Horovod."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launcher import LAUNCHER_VARIABLES

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def environment_without_mpi(folder: Path) -> dict[str, str]:
    """Return the environment of processes that can import neither mpi4py nor Horovod; `folder` is for its files."""
    for name in ("mpi4py", "horovod"):
        (folder / f"{name}.py").write_text(f'raise ModuleNotFoundError("No module named {name!r}", name={name!r})')
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    left_out = (*LAUNCHER_VARIABLES, "PYTHONUNBUFFERED")  # ranks themselves must flush what they print
    rest = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    # torchrun sets OMP_NUM_THREADS, too, but warns of it.
    return rest | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


@contextmanager
def started(command: list[str | Path], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Start a process; kill it at the end of the block if it is still running. The ranks of torchrun end with it."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([*map(str, command)], text=True, **pipes, **options)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=40)  # torchrun kills ranks that do not end in 30 s
