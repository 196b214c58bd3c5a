"""The writing half of the one-sided protocol: this rank's shard of its group's snapshots, for peers to read."""

from __future__ import annotations

import numpy as np
import torch
from mpi4py import MPI

from hpcdistill.exchange.codec import Packing
from hpcdistill.exchange.window.slots import HEADER_NBYTES, SLOTS, STAMP_NBYTES, stamp_of


class Writer:
    """Fills the slots of this rank's window, in turn, and announces in its header what is complete.

    The training thread calls `write`, the communication thread `announce`.

    Args:
        window: of all ranks, open to readers.
        rank: this process's in the window's communicator.
        packing: of the shard.
        device: where the model is.
    """

    def __init__(self, window: MPI.Win, rank: int, packing: Packing, device: torch.device) -> None:
        self._window = window
        self._rank = rank
        self._packing = packing
        memory = torch.frombuffer(window.tomemory(), dtype=torch.uint8)
        memory.zero_()  # touched now: the first publish costs no more than later ones
        self._slots = list(memory[HEADER_NBYTES:].split(STAMP_NBYTES + packing.nbytes))
        self._offload = _Offload(memory, packing.nbytes, device) if device.type == "cuda" else None
        self._offered = self._announced = 0  # versions: written to a slot / visible to peers

    @property
    def idle(self) -> bool:
        """Whether all that was written is visible to peers."""
        return self._offered == self._announced

    def write(self, tensors: list[torch.Tensor], step: int) -> int:
        """Put the shard of the model with these tensors into the next slot; its length in bytes. Only when `idle`."""
        version = self._offered + 1
        slot = self._slots[version % SLOTS]
        stamp_of(slot.numpy())[:] = version, step
        if self._offload:
            self._packing.encode(tensors, self._offload.staging)
            self._offload.begin(slot[STAMP_NBYTES:])
        else:
            self._packing.encode(tensors, slot[STAMP_NBYTES:])
        self._offered = version
        return STAMP_NBYTES + self._packing.nbytes

    def announce(self) -> bool:
        """Make what was written last visible to peers; whether there was any such thing, or soon will be."""
        version = self._offered
        if version == self._announced:
            return False
        if self._offload is None or self._offload.done:
            self._window.Sync()
            header, former = np.array([version]), np.empty(1, np.int64)  # MPI's until the flush, so they need names
            self._window.Fetch_and_op(header, former, self._rank, 0, MPI.REPLACE)
            self._window.Flush(self._rank)
            self._window.Sync()
            self._announced = version
        return True

    def free(self) -> None:
        """Let go of the window's memory, which no view may outlive."""
        if self._offload:
            self._offload.free()
        self._slots = []


class _Offload:
    """The way from a GPU to a window, beside the training.

    The weights are copied on the device first, at its memory's speed, so that training may change them at once; a
    stream of its own then carries the copy to the host.

    Args:
        memory: of the window, uint8 on the host.
        nbytes: of a shard.
        device: the GPU.
    """

    def __init__(self, memory: torch.Tensor, nbytes: int, device: torch.device) -> None:
        self._memory = memory
        # Page-locked, because copies to other memory are not asynchronous (CUDA Runtime API, Section 2).
        torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.nbytes, 0))
        self._stream = torch.cuda.Stream(device)
        self._event = torch.cuda.Event()
        self.staging = torch.empty(nbytes, dtype=torch.uint8, device=device)

    def begin(self, slot: torch.Tensor) -> None:
        """Begin to copy `staging`, once all that was asked of the device so far is done."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            slot.copy_(self.staging, non_blocking=True)
            self._event.record()

    @property
    def done(self) -> bool:
        """Whether the copy has arrived."""
        return bool(self._event.query())

    def free(self) -> None:
        """Unlock the memory's pages."""
        self._stream.synchronize()
        torch.cuda.check_error(torch.cuda.cudart().cudaHostUnregister(self._memory.data_ptr()))
