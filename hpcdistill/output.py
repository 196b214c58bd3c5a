"""Standard output and error that stop nothing: the disk of a log may be full, the reader of a pipe gone."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import Any, TextIO


class ForgivingStream:
    """A text stream that goes on without what cannot be written.

    Args:
        stream: where to write.

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
        """Pass on what can be passed on."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self.error = self.error or error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def forgive_output() -> ForgivingStream:
    """Let nothing that this process prints raise from now on; return its new standard output.

    That holds for what libraries print, and for the flush at the end of Python, which would change the exit status.
    """
    # A file that got the number of a closed standard stream would receive what is printed.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    output = _forgiving(sys.stdout)
    sys.stdout, sys.stderr = output, _forgiving(sys.stderr)  # type: ignore[assignment]
    return output


def say(message: str) -> None:
    """Print to standard error what need not arrive."""
    with suppress(OSError, ValueError):
        print(message, file=sys.stderr, flush=True)


def _forgiving(stream: Any) -> ForgivingStream:
    if isinstance(stream, ForgivingStream):
        return stream
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")  # names of files need not be text
    return ForgivingStream(stream or open(os.devnull, "w"))  # noqa: PTH123
