"""Reading ahead of training."""

from __future__ import annotations

import threading
import time
from collections import deque
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from hpcdistill.data.batches import Batch, TrainingBatches

if TYPE_CHECKING:
    from typing_extensions import Self

AHEAD = 2
"""Number of batches that are read before they are drawn."""

JUDGED = 50
"""Number of the last reads that decide whether reading is slow: more than half of them must have been."""

SLOW = 5e-3
"""Seconds of a slow read. A thread that makes faster ones costs more than it saves: it competes with the training for
Python's lock, which a thread may hold for this long."""

PATIENCE = 5.0
"""Seconds to wait at the end for a batch that is being read."""


class Prefetch(TrainingBatches):
    """Training batches that a thread reads ahead where reading is slow; a context manager that ends the thread.

    On a CPU batches are read in place until reads are slow. For a GPU the thread begins when the first batch is drawn,
    and puts the batches into pinned memory, from which they are copied while the host goes on. What the thread raises
    is raised where the batch would have been drawn.

    Args:
        batches: the batches. From the first draw on, they belong to this object.
        device: device that the batches are for.

    Attributes:
        per_pass: see `TrainingBatches`.
        drawn: number of batches drawn, not of those read. Set it, and `reader_state`, before the first draw.
        reader_state: state of the reader after the last batch drawn.
    """

    def __init__(self, batches: TrainingBatches, device: torch.device) -> None:
        self._batches = batches
        self.per_pass = batches.per_pass
        self._device = device
        self._has_begun = False
        self._were_slow: deque[bool] = deque(maxlen=JUDGED)
        self._ready: SimpleQueue[_Ready | BaseException] = SimpleQueue()
        self._room = threading.Semaphore(AHEAD)
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def __next__(self) -> Batch:
        if not self._has_begun:
            self._has_begun = True
            self._batches.drawn, self._batches.reader_state = self.drawn, self.reader_state
            if self._device.type == "cuda":
                self._start()
        return self._read_in_place() if self._thread is None else self._take()

    def _read_in_place(self) -> Batch:
        begin = time.perf_counter()
        batch = next(self._batches)
        self.drawn, self.reader_state = self._batches.drawn, self._batches.reader_state
        self._were_slow.append(time.perf_counter() - begin > SLOW)
        if sum(self._were_slow) > JUDGED // 2:
            self._start()
        return batch

    def _take(self) -> Batch:
        """Return the next batch that the thread has read."""
        if self._failure is None:
            ready = self._ready.get()
            if isinstance(ready, _Ready):
                self._room.release()
                self.drawn, self.reader_state = ready.drawn, ready.reader_state
                return ready.batch
            self._failure = ready
        raise self._failure

    def _start(self) -> None:
        # A daemon thread: Python waits for all others when it ends, and a file server may never answer.
        self._thread = threading.Thread(target=self._read, name="data", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread, or leave it alone if it is still reading after `PATIENCE`."""
        if self._thread is None:
            self._batches.close()
            return
        self._closing.set()
        self._room.release()
        self._thread.join(PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self) -> None:
        is_gpu = self._device.type == "cuda"
        try:
            if is_gpu:
                torch.cuda.set_device(self._device)  # of this thread; pinned memory belongs to a device's context
            while True:
                self._room.acquire()
                if self._closing.is_set():
                    break
                batch = next(self._batches)
                if is_gpu:
                    batch = batch.pin()
                self._ready.put(_Ready(batch, self._batches.drawn, self._batches.reader_state))
        except BaseException as error:  # whatever it is, the training must not wait for a batch
            self._ready.put(error)
        finally:
            self._batches.close()


class _Ready(NamedTuple):
    batch: Batch
    drawn: int
    reader_state: Tensor | None
    """State of the reader after the batch."""
