"""The default process group of torch.distributed, and what all process groups have in common."""

from __future__ import annotations

import atexit
import re
import sys
from datetime import timedelta
from typing import Any, cast

from torch import distributed as dist

TIMEOUT = timedelta(hours=1)
"""Time for all ranks to join a collective operation; a rank may wait half an hour for its last checkpoint."""


def init_default_group(backend: str, **meeting: Any) -> dist.ProcessGroup:
    """Initialise torch.distributed, and return the default process group. Collective over its ranks.

    Args:
        backend: "gloo" or "nccl".
        meeting: rank, size and meeting point, as `torch.distributed.init_process_group` takes them.

    Raises:
        RuntimeError: the ranks cannot connect.
    """
    hook = sys.excepthook
    try:
        dist.init_process_group(backend, timeout=TIMEOUT, **meeting)
    finally:
        sys.excepthook = hook  # torch's own would keep back what end_job prints
    atexit.register(_close)
    return cast(dist.ProcessGroup, dist.group.WORLD)


def summary(error: Exception) -> str:
    """Return the first sentence of an error's message, without the place in the source of gloo before it."""
    return re.sub(r"^\[\S+\] ", "", str(error)).partition("\n")[0].partition(". ")[0]


def _close() -> None:
    """Leave the process groups before Python ends: NCCL warns of those that are left open."""
    if dist.is_initialized():
        dist.destroy_process_group()
