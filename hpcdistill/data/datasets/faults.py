"""Errors in the user's code that reads data."""

from __future__ import annotations

import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import PicklingError

from torch._C import _error_if_any_worker_fails
from torch.utils.data._utils import signal_handling

from hpcdistill.errors import UserError

PACKAGE = str(Path(__file__).parents[2])
DIED = "DataLoader worker"  # begins torch's message about a process that has ended


@contextmanager
def user_code(what: str) -> Iterator[None]:
    """Turn an error in the block into a `UserError` that says `what`, with the traceback of the user's code.

    Where processes have died, or cannot be given the data, the error says so in place of the traceback.
    A process that dies outside of all blocks fails the next one.
    """
    try:
        _error_if_any_worker_fails()
        yield
        _remove_torch_handler()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = str(error)
    if (text.startswith(DIED) and "Caught" not in text) or _is_of_connection(error):
        first_line = text.partition("\n")[0]
        return (
            f"a process of data.workers has died ({first_line}); it may have been killed for want of memory, or of "
            "space in /dev/shm: lower --data.workers, or see the messages above"
        )
    if isinstance(error, PicklingError) or "pickle" in text:
        return f"the data cannot be sent to the processes of data.workers ({text}); define its classes in a module"
    if "Original Traceback" in text:  # of a process, by torch
        return text
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(PACKAGE)]
    return "".join(["\n", *traceback.format_list(frames), *traceback.format_exception_only(error)]).rstrip()


def _remove_torch_handler() -> None:
    """Remove torch's handler of SIGCHLD, which the main thread installs once, when it starts the first processes.

    The handler raises wherever the main thread is: in a training step, or in code that may ignore the error.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    is_torch_handler = getattr(handler, "__module__", "") == signal_handling.__name__
    if is_torch_handler and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _is_of_connection(error: Exception) -> bool:
    """Return whether the connection to a process has broken, as by its death a moment before torch notices it."""
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, ConnectionError | EOFError) and "multiprocessing" in Path(frames[-1].filename).parts
