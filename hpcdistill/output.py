"""Standard output, standard error and the log, none of which can stop a run: a disk may be full, a reader gone."""

from __future__ import annotations

import io
import logging
import os
import sys
from contextlib import suppress
from typing import Any, TextIO


class ForgivingStream:
    """Text stream that drops what cannot be written.

    Args:
        stream: stream to write to.

    Attributes:
        error: the first failure; None while there is none.
    """

    def __init__(self, stream: TextIO) -> None:
        self.error: OSError | ValueError | None = None
        self._stream = stream

    def write(self, text: str) -> int:
        """Write what can be written; return the length of `text`."""
        try:
            self._stream.write(text)
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            self.error = self.error or error
        return len(text)

    def flush(self) -> None:
        """Flush what can be flushed."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self.error = self.error or error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def forgive_output() -> ForgivingStream:
    """Keep all that this process prints from raising; return its new standard output.

    This includes what libraries print, and the flush when Python ends, which would change the exit status.
    """
    # A file opened later must not get the number of a closed standard stream: it would receive what is printed.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    output = _forgiving(sys.stdout)
    sys.stdout, sys.stderr = output, _forgiving(sys.stderr)  # type: ignore[assignment]
    return output


def print_error(message: str) -> None:
    """Print to standard error, if that is possible."""
    with suppress(OSError, ValueError):
        print(message, file=sys.stderr, flush=True)


def log_to_stderr() -> None:
    """Print the package's log to standard error: warnings as "hpcdistill: warning: …".

    HPCDISTILL_DEBUG=1 adds debug messages, such as one line for each snapshot published, fetched and adopted. A script
    that does not call this function sees warnings through Python's default handler.
    """
    logger = logging.getLogger(__package__)
    logger.setLevel(logging.DEBUG if is_debugging() else logging.INFO)
    if not any(isinstance(handler, _StderrHandler) for handler in logger.handlers):
        logger.addHandler(_StderrHandler())


def is_debugging() -> bool:
    """Return True if HPCDISTILL_DEBUG asks for debug messages."""
    return os.environ.get("HPCDISTILL_DEBUG", "") not in ("", "0")


class _StderrHandler(logging.Handler):
    """Handler that prints to the present `sys.stderr`, whatever it is, and never raises."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record, with its level if it is not for information only."""
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        print_error(f"hpcdistill: {level}{record.getMessage()}")


def _forgiving(stream: Any) -> ForgivingStream:
    if isinstance(stream, ForgivingStream):
        return stream
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")  # file names need not be text
    return ForgivingStream(stream or open(os.devnull, "w"))  # noqa: PTH123
