"""The communicator of all ranks of this job, by MPI or without it."""

from __future__ import annotations

import faulthandler
from functools import cache
from typing import TYPE_CHECKING

from hpcdistill.distributed.checks import require_one_world, require_thread_multiple
from hpcdistill.distributed.launch import START_SECONDS, start_mpi, was_launched
from hpcdistill.distributed.rendezvous import Rendezvous, of_srun, of_torchrun
from hpcdistill.distributed.single import SingleProcess
from hpcdistill.errors import UserError

if TYPE_CHECKING:
    from hpcdistill.distributed.communicator import Communicator
    from hpcdistill.distributed.torch_communicator import TorchCommunicator


@cache
def start_world() -> Communicator:
    """Start communication with all other ranks of the job, or end this process when they do not arrive in time.

    Collective over the ranks of the job. Ranks that torchrun has started, or srun where mpi4py or its MPI library is
    not installed, communicate by torch.distributed; all others by MPI. A process that no launcher has started, where
    there is no MPI, is alone.

    Raises:
        UserError: MPI grants too low a thread level, the PMI plugin of srun does not fit this MPI, or a launcher of MPI
            has started this process and there is no MPI.
    """
    meeting = of_torchrun()
    if meeting:
        return _start_torch(meeting)
    try:
        start_mpi()
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        if not isinstance(error, ImportError) and type(error) is not RuntimeError:
            raise  # an error of MPI itself
        meeting = of_srun()
        if meeting:
            return _start_torch(meeting)
        if was_launched():
            raise UserError(
                f"a launcher of MPI has started this rank, but mpi4py cannot be imported: {error}; run make setup, or "
                "start the ranks with torchrun or srun and set --exchange.transport=files --gradients=torch"
            ) from error
        return SingleProcess()
    require_one_world()
    require_thread_multiple()
    return MPI.COMM_WORLD


def _start_torch(meeting: Rendezvous) -> TorchCommunicator:
    from hpcdistill.distributed.torch_communicator import start

    faulthandler.dump_traceback_later(START_SECONDS, exit=True)
    try:
        return start(meeting)
    finally:
        faulthandler.cancel_dump_traceback_later()
