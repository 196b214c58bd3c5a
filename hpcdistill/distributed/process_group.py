"""Process groups of torch.distributed, one for each group of ranks."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import distributed as dist

from hpcdistill.distributed.checks import is_of_mpi
from hpcdistill.distributed.default_group import TIMEOUT, init_default_group, summary
from hpcdistill.distributed.device import require_own_gpu
from hpcdistill.distributed.progress import keep_mpi_going
from hpcdistill.errors import UserError

if TYPE_CHECKING:
    from hpcdistill.distributed.communicator import Communicator

CONNECT_SECONDS = 60.0
"""Time for the ranks of a group, which begin together, to connect to their leader."""

INTERFACE = "GLOO_SOCKET_IFNAME"
"""Environment variable that names the network interface of gloo; the leader listens there, too."""

_SIOCGIFADDR = 0x8915  # of Linux: the IPv4 address of an interface


def open_process_group(comm: Communicator, device: torch.device) -> dist.ProcessGroup:
    """Return a process group of the ranks of `comm`. Collective over them.

    Its backend is NCCL (RCCL on AMD's GPUs) for GPUs, and gloo for CPUs. If the process has a default process group,
    the new one is a part of it. Otherwise the ranks meet at a store of their leader, whose address travels through
    `comm`, and the new process group becomes the default one.

    Args:
        comm: communicator of a group.
        device: device of this rank, on which the tensors are.

    Raises:
        UserError: this torch has no torch.distributed, two ranks have the same GPU, or the ranks cannot connect.
    """
    if not dist.is_available():
        raise UserError("gradients = 'torch' needs torch.distributed, which this torch is built without")
    if device.type == "cuda":
        require_own_gpu(comm, device)
    if is_of_mpi(comm):
        keep_mpi_going()
    backend = "gloo" if device.type == "cpu" else "nccl"
    try:
        if dist.is_initialized():
            ranks = comm.allgather(dist.get_rank())
            return cast(dist.ProcessGroup, dist.new_group(ranks, TIMEOUT, backend, use_local_synchronization=True))
        return init_default_group(backend, store=_meet(comm), world_size=comm.size, rank=comm.rank)
    except RuntimeError as error:
        raise UserError(
            f"gradients = 'torch': rank {comm.rank} of a group of {comm.size} on {socket.gethostname()} cannot connect "
            f"to the others ({summary(error)}); set {INTERFACE} to the network interface that joins the nodes, as "
            "ip address shows it, or use --gradients=horovod"
        ) from error


def _meet(comm: Communicator) -> Any:
    """Return a store of torch.distributed that the leader serves at a free port, after this rank has connected."""
    patience = timedelta(seconds=CONNECT_SECONDS)
    leader, *_ = addresses = comm.allgather(_address())
    host = "localhost" if comm.rank == 0 or addresses[comm.rank] == leader else leader
    if comm.rank == 0:
        store = dist.TCPStore(  # type: ignore[attr-defined]
            host, 0, is_master=True, wait_for_workers=False, timeout=patience
        )
        comm.bcast(store.port)
        return store
    return dist.TCPStore(host, comm.bcast(0), is_master=False, timeout=patience)  # type: ignore[attr-defined]


def _address() -> str:
    """Return the name or address by which other nodes reach this one."""
    name = os.environ.get(INTERFACE, "").split(",")[0]
    if not name:
        return socket.gethostname()
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            answer = fcntl.ioctl(any_socket, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
    except OSError as error:
        raise UserError(
            f"{INTERFACE} = {name!r} is no network interface with an IPv4 address on {socket.gethostname()} "
            f"({error.strerror}); choose one that ip address shows"
        ) from None
    return socket.inet_ntoa(answer[20:24])
