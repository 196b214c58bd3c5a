"""What works on this machine, and the remedy for what does not: `python -m hpcdistill doctor`.

A check is one small function that returns a `Result`; a row of the table is that function's place in `CHECKS`. Under
mpirun or srun the checks are collective, so doctor can be started just as a run would be; what a Slurm job needs beyond
them is in `cluster_doctor.py`.
"""

from __future__ import annotations

import importlib
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from importlib import metadata
from pathlib import Path

from hpcdistill.distributed.checks import require_one_world, require_thread_multiple
from hpcdistill.distributed.launch import end_job
from hpcdistill.errors import UserError

SETUP = "run `make setup`"
# Four ranks of the demo took 19 MiB; with 8 MiB they died.
SMALLEST_SHARED_MEMORY = 32 * 2**20
CHECK_SECONDS = 300.0  # importing torch for the first time, from a busy filesystem, takes minutes


class Status(Enum):
    """Whether something works, and whether training depends on it."""

    OK = "OK"
    OPTIONAL = "missing, optional"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Result:
    """One row: what was found, and what to do where that is not enough."""

    status: Status
    found: str
    remedy: str = ""


Check = tuple[str, Callable[[], Result], str]
"""A row's name, what finds its result, and what usually helps where that raises."""


def main(more: Sequence[Check] = ()) -> int:
    """Run all checks, and `more`, and print them; 1 where the main job could not run."""
    rank = _rank()
    results = {}
    for name, check, remedy in [*CHECKS, *more]:
        with deadline(CHECK_SECONDS, f"the check {name!r}"):
            results[name] = run(check, remedy)
        if rank > 0 and results[name].status is Status.FAIL:  # said at once: the others may now wait in vain
            print(f"\nOn rank {rank}:\n{row(name, results[name])}", flush=True)
    failed = [name for name, result in results.items() if result.status is Status.FAIL]
    if rank == 0:
        print("\n".join(map(row, results, results.values())))
        print(f"\nTraining cannot run: {', '.join(failed)}." if failed else "\nTraining can run.", flush=True)
    return 1 if failed else 0


@contextmanager
def deadline(seconds: float, what: str) -> Iterator[None]:
    """End the job if the block has not ended in time: what some ranks wait for, others may never do."""
    late = UserError(f"{what} has not ended in {seconds:g} s: it hangs, or waits for a rank that failed or is cut off")
    timer = threading.Timer(seconds, end_job, [late])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def row(name: str, result: Result) -> str:
    """The result as it is printed."""
    found = result.found.replace("\n", f"\n{'':<35}")
    text = f"{name:<16}{result.status.value:<19}{found}"
    return f"{text}\n{'':<16}remedy: {result.remedy}" if result.remedy else text


def run(check: Callable[[], Result], remedy: str) -> Result:
    """The check's result; a check that raises has failed, and `remedy` is what usually helps."""
    try:
        return check()
    except UserError as error:  # its message holds the remedy
        return Result(Status.FAIL, str(error))
    except Exception as error:
        message = str(error).partition("\n")[0]
        return Result(Status.FAIL, f"{type(error).__name__}: {message}", remedy)


def check_mpi() -> Result:
    """MPI loads, and every rank that was started is in one world."""
    from mpi4py import MPI

    require_one_world()
    name, version = MPI.get_vendor()
    return Result(Status.OK, f"{name} {'.'.join(map(str, version))}, world of {MPI.COMM_WORLD.size}")


def check_threads() -> Result:
    """Horovod's thread and the exchange's call MPI beside ours."""
    require_thread_multiple()
    return Result(Status.OK, "MPI_THREAD_MULTIPLE")


def check_windows() -> Result:
    """The exchange reads peers through windows of the unified model, with atomic headers."""
    import numpy as np
    from mpi4py import MPI

    window = MPI.Win.Allocate(8, 8, comm=MPI.COMM_WORLD)
    try:
        if window.Get_attr(MPI.WIN_MODEL) != MPI.WIN_UNIFIED:
            return Result(
                Status.FAIL, "MPI_WIN_MODEL is not MPI_WIN_UNIFIED", "choose another MPI: MPI=mpich make setup"
            )
        me = MPI.COMM_WORLD.rank
        written, before, after = (np.array([value], np.int64) for value in (42, -1, -1))
        window.Lock(me)
        window.Fetch_and_op(written, before, me, op=MPI.REPLACE)
        window.Flush(me)
        window.Fetch_and_op(written, after, me, op=MPI.NO_OP)
        window.Unlock(me)
        assert after[0] == 42, f"wrote 42 with Fetch_and_op, read {after[0]}"
    finally:
        window.Free()
    return Result(Status.OK, "MPI_WIN_UNIFIED, Fetch_and_op round trip")


def check_horovod() -> Result:
    """Horovod averages gradients inside a group."""
    import horovod
    import horovod.torch as hvd
    import torch
    from mpi4py import MPI

    hvd.init(comm=MPI.COMM_WORLD)
    total = hvd.allreduce(torch.ones(1000), op=hvd.Sum)
    assert bool((total == hvd.size()).all()), f"the sum of ones over {hvd.size()} ranks is {float(total[0])}"
    return Result(Status.OK, f"{horovod.__version__}, torch {torch.__version__}, allreduce on {hvd.size()} rank(s)")


def check_gpu() -> Result:
    """Optional: training runs on CPUs too."""
    import torch

    if not torch.cuda.is_available():
        return Result(Status.OPTIONAL, "none", "on a machine with an NVIDIA GPU: its driver, and a CUDA build of torch")
    names = {torch.cuda.get_device_name(device) for device in range(torch.cuda.device_count())}
    return Result(Status.OK, f"{torch.cuda.device_count()} × {', '.join(sorted(names))}")


def check_triton() -> Result:
    """Optional: the loss on GPUs is faster with it."""
    try:
        importlib.import_module("hpcdistill.kernels.triton_codistillation")
    except ImportError as error:
        return Result(
            Status.OPTIONAL, str(error), f"{SETUP}: it installs Triton where there is a build for this machine"
        )
    return Result(Status.OK, metadata.version("triton"))


def check_native_kernels() -> Result:
    """Optional: the loss on CPUs is faster with them."""
    from hpcdistill.kernels.cpu_codistillation import instruction_set

    try:
        return Result(Status.OK, f"the loss on CPUs uses {instruction_set()} instructions")
    except ImportError as error:
        return Result(Status.OPTIONAL, f"{error}; the loss uses torch on CPUs", f"a C++ compiler, then {SETUP}")


def check_hdf5() -> Result:
    """Data and checkpoints are HDF5, checksummed."""
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
    """MPI keeps the windows of one node's ranks there, and dies with SIGBUS when it is full."""
    free = shutil.disk_usage("/dev/shm").free
    found = f"{free / 2**20:.0f} MiB free in /dev/shm; each rank takes three times its share of the model"
    if free < SMALLEST_SHARED_MEMORY:
        return Result(Status.FAIL, found, "enlarge it: mount -o remount,size=4G /dev/shm, or docker run --shm-size=4g")
    return Result(Status.OK, found)


def check_slurm() -> Result:
    """Optional: mpirun does without."""
    missing = [command for command in ("sbatch", "srun") if not shutil.which(command)]
    if missing:
        return Result(
            Status.OPTIONAL, f"no {', no '.join(missing)}", "only for slurm/train.sbatch: run on a cluster's login node"
        )
    version = subprocess.run(["srun", "--version"], capture_output=True, text=True, timeout=10)
    return Result(Status.OK, version.stdout.strip() or "installed, not configured")


def _rank() -> int:
    """This process's rank, 0 where MPI does not even load."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError):
        return 0
    return MPI.COMM_WORLD.rank


CHECKS: list[Check] = [
    ("MPI", check_mpi, f"{SETUP}; on a cluster load the MPI module first"),
    ("MPI threads", check_threads, SETUP),
    ("MPI windows", check_windows, "MPI=mpich make setup"),
    ("Horovod", check_horovod, SETUP),
    ("GPU", check_gpu, SETUP),
    ("Triton", check_triton, SETUP),
    ("native kernels", check_native_kernels, SETUP),
    ("HDF5", check_hdf5, SETUP),
    ("shared memory", check_shared_memory, "doctor expects Linux with /dev/shm"),
    ("Slurm", check_slurm, "ask your site"),
]
