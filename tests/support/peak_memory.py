"""Peak memory of a function."""

import os
import resource
from collections.abc import Callable
from pathlib import Path


def peak_of(work: Callable[[], None]) -> int:
    """Return the memory, in bytes, by which a process grows at most that calls `work`, and the peak of its children.

    What this process holds, which varies, does not count.
    """
    reader, writer = os.pipe()
    worker = os.fork()
    if worker == 0:
        try:
            before = _resident()
            work()
            grown = _peak(resource.RUSAGE_SELF) - before
            os.write(writer, str(grown + _peak(resource.RUSAGE_CHILDREN)).encode())
        finally:
            os._exit(1)  # never back into pytest
    os.close(writer)
    with os.fdopen(reader) as answer:
        result = answer.read()
    os.waitpid(worker, 0)
    return int(result)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _peak(who: int) -> int:
    return resource.getrusage(who).ru_maxrss << 10
