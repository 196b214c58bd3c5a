"""Copies between a GPU and the host: memory that a GPU reads fast, and asynchronous copies to a window."""

from __future__ import annotations

import logging
import weakref
from contextlib import suppress

import numpy as np
import torch

from hpcdistill.exchange.window.slots import Bytes

logger = logging.getLogger(__name__)


def host_memory(nbytes: int, device: torch.device) -> Bytes:
    """Return `nbytes` bytes of host memory, whose pages exist already, and are locked if `device` is a GPU."""
    memory: Bytes = np.full(nbytes, 0, np.uint8)
    if device.type == "cuda" and nbytes:
        address = memory.ctypes.data
        if error := _lock_pages(address, nbytes, device):
            logger.warning(f"CUDA cannot lock the pages of {nbytes} bytes ({error}); copies from and to {device} wait")
        else:
            # Not torch's pinned memory, whose size is rounded up to a power of 2.
            weakref.finalize(memory, _unlock_pages, address).atexit = False
    return memory


class Offload:
    """Copy from a GPU to a window, concurrent with training.

    The shard is first encoded into `staging` on the device, at the speed of its memory, so that training may change the
    weights at once. A separate stream then carries it to the host. Such a copy is asynchronous only to page-locked
    memory (CUDA Runtime API, Section 2): the window's, or, if CUDA cannot lock that, other memory, from which `finish`
    copies it to the window.

    Args:
        memory: memory of the window, uint8 on the host.
        nbytes: length of a shard.
        device: the GPU.

    Attributes:
        staging: memory for the encoded shard, uint8 [nbytes] on the GPU.
    """

    def __init__(self, memory: torch.Tensor, nbytes: int, device: torch.device) -> None:
        self._memory = memory
        self._device = device
        self._between: torch.Tensor | None = None
        if error := _lock_pages(memory.data_ptr(), memory.nbytes, device):
            logger.warning(
                f"CUDA cannot lock the pages of the exchange's window ({error}); snapshots leave {device} through other"
                " memory, with one more copy on the host"
            )
            self._between = torch.from_numpy(host_memory(nbytes, device))
        self._stream = torch.cuda.Stream(device)
        self._event = torch.cuda.Event()
        self._slot = memory[:0]
        self.staging = torch.empty(nbytes, dtype=torch.uint8, device=device)

    def begin(self, slot: torch.Tensor) -> None:
        """Begin to copy `staging` to `slot`, after all work that the current stream has so far."""
        self._slot = slot
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            (slot if self._between is None else self._between).copy_(self.staging, non_blocking=True)
            self._event.record()

    def finish(self) -> bool:
        """Return whether the copy has arrived in the slot; False while it is under way."""
        if not self._event.query():
            return False
        if self._between is not None:
            self._slot.copy_(self._between)
        return True

    def free(self) -> None:
        """Unlock the pages of the window's memory."""
        self._stream.synchronize()
        if self._between is None:
            _unlock_pages(self._memory.data_ptr())


def _lock_pages(address: int, nbytes: int, device: torch.device) -> str:
    """Lock the pages of host memory, from and to which a GPU then copies asynchronously; return CUDA's error, or ""."""
    try:
        torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(address, nbytes, 0))
    except RuntimeError as error:
        with suppress(RuntimeError):  # the next launch of a kernel reports the error a second time
            torch.zeros(1, device=device)
        return str(error)
    return ""


def _unlock_pages(address: int) -> None:
    torch.cuda.check_error(torch.cuda.cudart().cudaHostUnregister(address))
