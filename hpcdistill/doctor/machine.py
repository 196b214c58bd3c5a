"""Checks of what a single process needs of its machine."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import tempfile
from importlib import metadata
from pathlib import Path

from hpcdistill.doctor.check import SETUP, Check, Result, Status
from hpcdistill.errors import UserError

# Four ranks of the demo took 19 MiB; with 8 MiB they died.
MIN_SHARED_MEMORY = 32 * 2**20


def check_gpu() -> Result:
    """Check that torch sees the GPUs of this machine or job. Optional: without any, training runs on CPUs.

    Raises:
        UserError: there are GPUs, and torch does not see them.
    """
    import torch

    from hpcdistill.distributed.device import torch_build, unused_gpus

    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(device) for device in range(torch.cuda.device_count())}
        return Result(Status.OK, f"{torch.cuda.device_count()} × {', '.join(sorted(names))}; {torch_build()}")
    if unused := unused_gpus():
        raise UserError(unused)
    return Result(
        Status.OPTIONAL, f"none; {torch_build()}", "with a GPU: its driver, and ACCELERATOR=cuda make setup (AMD: rocm)"
    )


def check_triton() -> Result:
    """Look for Triton. Optional: it makes the loss on GPUs faster."""
    try:
        importlib.import_module("hpcdistill.kernels.triton_codistillation")
    except ImportError as error:
        return Result(
            Status.OPTIONAL, str(error), f"{SETUP}: it installs Triton where there is a build for this machine"
        )
    return Result(Status.OK, metadata.version("triton"))


def check_cpu_kernels() -> Result:
    """Look for the compiled kernels. Optional: they make the loss on CPUs faster."""
    from hpcdistill.kernels.cpu_codistillation import instruction_set

    try:
        return Result(Status.OK, f"the loss on CPUs uses {instruction_set()} instructions")
    except ImportError as error:
        return Result(Status.OPTIONAL, f"{error}; the loss uses torch on CPUs", f"a C++ compiler, then {SETUP}")


def check_hdf5() -> Result:
    """Check that HDF5 gives back what it has stored with checksums; data and checkpoints are such files."""
    import h5py
    import numpy as np

    written = np.arange(1000)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "check.h5"
        with h5py.File(path, "w") as file:
            file.create_dataset("data", data=written, chunks=(100,), fletcher32=True)
        with h5py.File(path, "r") as file:
            assert (file["data"][:] == written).all(), "what was read differs from what was written"
    return Result(Status.OK, f"{h5py.version.hdf5_version}, h5py {h5py.__version__}, checksummed round trip")


def check_shared_memory() -> Result:
    """Check the room in /dev/shm: MPI keeps the windows of a node's ranks there, and dies of SIGBUS if it is full."""
    free = shutil.disk_usage("/dev/shm").free
    found = f"{free / 2**20:.0f} MiB free in /dev/shm; each rank takes three times its share of the model"
    if free < MIN_SHARED_MEMORY:
        return Result(Status.FAIL, found, "enlarge it: mount -o remount,size=4G /dev/shm, or docker run --shm-size=4g")
    return Result(Status.OK, found)


def check_slurm() -> Result:
    """Look for the commands of Slurm. Optional: mpirun does without."""
    missing = [command for command in ("sbatch", "srun") if not shutil.which(command)]
    if missing:
        return Result(
            Status.OPTIONAL, f"no {', no '.join(missing)}", "only for slurm/train.sbatch: run on a cluster's login node"
        )
    version = subprocess.run(["srun", "--version"], capture_output=True, text=True, timeout=10)
    return Result(Status.OK, version.stdout.strip() or "installed, not configured")


CHECKS: list[Check] = [
    ("GPU", check_gpu, SETUP),
    ("Triton", check_triton, SETUP),
    ("CPU kernels", check_cpu_kernels, SETUP),
    ("HDF5", check_hdf5, SETUP),
    ("shared memory", check_shared_memory, "doctor expects Linux with /dev/shm"),
    ("Slurm", check_slurm, "ask your site"),
]
