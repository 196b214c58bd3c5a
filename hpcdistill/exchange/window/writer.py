"""Writing half of the one-sided protocol: this rank's shard of its group's snapshots, for peers to read."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from mpi4py import MPI

from hpcdistill.exchange.window.offload import Offload
from hpcdistill.exchange.window.slots import HEADER_NBYTES, SLOTS, STAMP_NBYTES, stamp_of


class Writer:
    """Writer of this rank's window: it fills the slots in turn and announces complete versions in the header.

    The training thread calls `write`, the communication thread `announce`.

    Args:
        window: window of all ranks, open to readers.
        rank: rank of this process in the window's communicator.
        encode: function that writes the shard into memory of `device`, uint8 [nbytes].
        nbytes: length of the shard.
        device: device of what is encoded.
    """

    def __init__(
        self,
        window: MPI.Win,
        rank: int,
        encode: Callable[[torch.Tensor], None],
        nbytes: int,
        device: torch.device,
    ) -> None:
        self._window = window
        self._rank = rank
        self._encode = encode
        memory = torch.frombuffer(window.tomemory(), dtype=torch.uint8)
        memory.zero_()  # touches all pages now, so that the first publish costs no more than later ones
        self._slots = list(memory[HEADER_NBYTES:].split(STAMP_NBYTES + nbytes))
        self._offload = Offload(memory, nbytes, device) if device.type == "cuda" else None
        self._offered = self._announced = 0  # versions: written to a slot / visible to peers

    @property
    def idle(self) -> bool:
        """True if all that was written is visible to peers."""
        return self._offered == self._announced

    def write(self, step: int) -> int:
        """Write the shard of step `step` into the next slot; return the bytes written. Call only when `idle`."""
        version = self._offered + 1
        slot = self._slots[version % SLOTS]
        stamp_of(slot.numpy())[:] = version, step
        if self._offload:
            self._encode(self._offload.staging)
            self._offload.begin(slot[STAMP_NBYTES:])
        else:
            self._encode(slot[STAMP_NBYTES:])
        self._offered = version
        return len(slot)

    def announce(self) -> bool:
        """Make the last version visible to peers; return False if there is none that is not visible yet."""
        version = self._offered
        if version == self._announced:
            return False
        if self._offload is None or self._offload.finish():
            self._window.Sync()
            header, former = np.array([version]), np.empty(1, np.int64)  # MPI's until the flush, so they need names
            self._window.Fetch_and_op(header, former, self._rank, 0, MPI.REPLACE)
            self._window.Flush(self._rank)
            self._window.Sync()
            self._announced = version
        return True

    def free(self) -> None:
        """Release the window's memory, which no view may outlive."""
        if self._offload:
            self._offload.free()
        self._slots = []
