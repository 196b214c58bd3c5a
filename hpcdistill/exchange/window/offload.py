"""Asynchronous copy of a shard from a GPU to the host memory of a window."""

from __future__ import annotations

import torch


class Offload:
    """Copy from a GPU to a window, concurrent with training.

    The shard is first encoded into `staging` on the device, at the speed of its memory, so that training may change the
    weights at once. A separate stream then carries it to the host.

    Args:
        memory: memory of the window, uint8 on the host.
        nbytes: length of a shard.
        device: the GPU.

    Attributes:
        staging: memory for the encoded shard, uint8 [nbytes] on the GPU.
    """

    def __init__(self, memory: torch.Tensor, nbytes: int, device: torch.device) -> None:
        self._memory = memory
        # Page-locked, because copies to other memory are not asynchronous (CUDA Runtime API, Section 2).
        torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.nbytes, 0))
        self._stream = torch.cuda.Stream(device)
        self._event = torch.cuda.Event()
        self.staging = torch.empty(nbytes, dtype=torch.uint8, device=device)

    def begin(self, slot: torch.Tensor) -> None:
        """Begin to copy `staging` to `slot`, after all work that the current stream has so far."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            slot.copy_(self.staging, non_blocking=True)
            self._event.record()

    @property
    def done(self) -> bool:
        """True if the copy has arrived."""
        return bool(self._event.query())

    def free(self) -> None:
        """Unlock the pages of the window's memory."""
        self._stream.synchronize()
        torch.cuda.check_error(torch.cuda.cudart().cudaHostUnregister(self._memory.data_ptr()))
