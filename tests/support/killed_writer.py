"""A writer that is killed at any moment."""

import os
import signal
import time
from collections.abc import Callable
from random import Random


def kill_at_random(
    write_for_ever: Callable[[], None], random: Random, begun: Callable[[], bool] = lambda: True
) -> None:
    """Let a process of its own write, and kill it in one of the first moments after it has `begun`."""
    writer = os.fork()  # rather than a new Python, which takes seconds to start
    if writer == 0:
        try:
            write_for_ever()
        finally:
            os._exit(1)  # never back into pytest
    while not begun():  # bounded by the test's timeout
        time.sleep(1e-3)
    time.sleep(random.uniform(0, 0.03))  # about as long as it writes at one file
    os.kill(writer, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(writer, 0)[1]) == signal.SIGKILL, "it ended by itself"
