"""What works between the ranks of a Slurm job: `"${LAUNCH[@]}" python -m hpcdistill doctor --slurm`.

All checks are collective. What a rank does alone it does inside `ask_all`, which never leaves the others waiting: a
failure is an answer as well, and a rank that hangs ends the job. Rank 0 tells what any rank has found.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from mpi4py import MPI

from hpcdistill.distributed.checks import require_one_world
from hpcdistill.distributed.device import local_device
from hpcdistill.doctor.machine import Check, Result, Status, deadline
from hpcdistill.doctor.window_probe import WindowProbe, place
from hpcdistill.errors import UserError
from hpcdistill.storage.whole_file import write_whole

T = TypeVar("T")

# Set by Hydra and by Open MPI's mpirun for each rank; not by srun, whose variables mpirun's ranks inherit.
MPIRUN_VARIABLES = ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_SIZE")

FILES = 3
SEEN_SECONDS = 75.0  # NFS may believe for 60 s, by default, that a file is not there yet
POLL_SECONDS = 0.02
TASK_SECONDS = 100.0  # longer than all that ends by itself

ALLOCATION_REMEDY = "run it inside one: sbatch slurm/doctor.sbatch, or by srun"
JOB_REMEDY = (
    "start all ranks with one srun, as slurm/env.sh does, or with an mpirun that takes their number from Slurm; "
    "or change sbatch --ntasks"
)
GPU_REMEDY = (
    "let all ranks of a node see all its GPUs (srun --gpu-bind=none), or each one of its own (sbatch --gpus-per-task=1)"
)
WINDOW_REMEDY = (
    "source tools/env.sh; name the network between nodes (FI_TCP_IFACE for MPICH, OMPI_MCA_btl_tcp_if_include for "
    "Open MPI); or train with --exchange.transport=files"
)
FOLDER_REMEDY = "give run_dir, and here --folder, a place where you may write and that all nodes share"


def checks(folder: Path) -> list[Check]:
    """What doctor has to check in a Slurm job; `folder` is where runs are to be written."""
    return [
        ("Slurm job", check_job, JOB_REMEDY),
        ("GPU binding", check_gpu_binding, GPU_REMEDY),
        ("window progress", check_window_progress, WINDOW_REMEDY),
        ("shared folder", lambda: check_folder(folder), FOLDER_REMEDY),
    ]


# --- one question, all ranks' answers ---


@dataclass(frozen=True)
class Answer(Generic[T]):
    """What a rank returned, or what went wrong there."""

    place: str
    value: T | None
    problem: str = ""


def ask_all(task: Callable[[], T]) -> list[Answer[T]]:
    """Each rank's answer, by rank; it is known everywhere. A rank on which `task` hangs ends the job."""
    here = place()
    with deadline(TASK_SECONDS, f"a check on {here}"):
        try:
            answer = Answer(here, task())
        except UserError as error:
            answer = Answer(here, None, str(error))
        except Exception as error:
            answer = Answer(here, None, f"{type(error).__name__}: {error}")
    return MPI.COMM_WORLD.allgather(answer)


def verdict(answers: Sequence[Answer[T]], found: str, remedy: str) -> Result:
    """On rank 0 the first problem of any rank, on the others their own; without one, what was found."""
    heard = answers if MPI.COMM_WORLD.rank == 0 else [answers[MPI.COMM_WORLD.rank]]
    problems = [f"{answer.place}: {answer.problem}" for answer in heard if answer.problem]
    if problems:
        others = f"; {len(problems) - 1} other rank(s) failed too" if len(problems) > 1 else ""
        return Result(Status.FAIL, problems[0] + others, remedy)
    return Result(Status.OK, found)


def _failed(answers: Sequence[Answer[Any]]) -> bool:
    return any(answer.problem for answer in answers)


def _slowest(answers: Sequence[Answer[float]]) -> str:
    """The worst of all ranks' seconds."""
    worst = max(answers, key=lambda answer: answer.value or 0.0)
    return f"{1e3 * (worst.value or 0.0):.1f} ms at worst, {worst.place}"


# --- who was started ---


def check_job() -> Result:
    """The ranks are those that Slurm knows of, with the same numbers."""
    if not os.environ.get("SLURM_JOB_ID"):
        return Result(Status.FAIL, "this is no allocation of Slurm: SLURM_JOB_ID is not set", ALLOCATION_REMEDY)
    require_one_world()
    by_mpirun = any(name in os.environ for name in MPIRUN_VARIABLES)
    answers = ask_all(_require_tasks_of_job if by_mpirun else _require_same_as_srun)
    job, size = os.environ["SLURM_JOB_ID"], MPI.COMM_WORLD.size
    return verdict(answers, f"{job}, {size} rank(s) by {'mpirun' if by_mpirun else 'srun'}", JOB_REMEDY)


def _require_same_as_srun() -> None:
    for variable, mine in [("SLURM_STEP_NUM_TASKS", MPI.COMM_WORLD.size), ("SLURM_PROCID", MPI.COMM_WORLD.rank)]:
        if os.environ.get(variable) != str(mine):
            raise UserError(
                f"{variable} is {os.environ.get(variable, 'not set')}, but MPI made this "
                f"rank {MPI.COMM_WORLD.rank} of {MPI.COMM_WORLD.size}"
            )


def _require_tasks_of_job() -> None:
    if MPI.COMM_WORLD.rank == 0 and (tasks := _tasks_of_job()) not in (None, MPI.COMM_WORLD.size):
        raise UserError(f"mpirun has started {MPI.COMM_WORLD.size} ranks, the allocation is for {tasks} tasks")


def _tasks_of_job() -> int | None:
    """What sbatch's --ntasks was, None without.

    Where mpirun has itself started helpers by srun, one a node, ranks find the number of those in SLURM_NTASKS.
    """
    if "SLURM_STEP_ID" not in os.environ:
        return int(os.environ["SLURM_NTASKS"]) if "SLURM_NTASKS" in os.environ else None
    command = ["scontrol", "show", "job", os.environ["SLURM_JOB_ID"]]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    tasks = re.search(r"NumTasks=(\d+)", shown)
    return int(tasks[1]) if tasks else None


# --- which rank has which GPU ---


@dataclass(frozen=True)
class Sight:
    """What a rank sees of its node's GPUs, and which of them it would train on."""

    rank: int
    node: str
    variable: str | None
    """CUDA_VISIBLE_DEVICES."""
    gpus: tuple[str, ...]
    """Names that all ranks of the node call them by."""
    chosen: int | None

    @property
    def gpu(self) -> str:
        """The name of the chosen one."""
        return self.gpus[self.chosen or 0]


def check_gpu_binding() -> Result:
    """Which rank trains on which GPU."""
    answers = ask_all(_gpus)
    if _failed(answers):
        return verdict(answers, "", GPU_REMEDY)
    gpus = answers[MPI.COMM_WORLD.rank].value or ()
    # Choosing is collective over ranks that see a GPU: none may be without.
    chosen = local_device(MPI.COMM_WORLD).index if all(answer.value for answer in answers) else None
    variable = os.environ.get("CUDA_VISIBLE_DEVICES")
    sight = Sight(MPI.COMM_WORLD.rank, os.uname().nodename, variable, gpus, chosen)
    return binding(MPI.COMM_WORLD.allgather(sight))


def binding(sights: Sequence[Sight]) -> Result:
    """What to say of the ranks' GPUs; `sights` is in the order of ranks."""
    if not any(sight.gpus for sight in sights):
        return Result(Status.OPTIONAL, "none", "on nodes with GPUs ask for them: sbatch --gpus-per-node")
    blind = [f"rank {sight.rank} on {sight.node}" for sight in sights if not sight.gpus]
    if blind:
        return Result(Status.FAIL, f"no GPU seen by {', '.join(blind)}, though others see some", GPU_REMEDY)
    nodes = [list(those) for _, those in groupby(sorted(sights, key=lambda s: (s.node, s.rank)), lambda s: s.node)]
    shared = list(filter(None, map(_shared_needlessly, nodes)))
    return Result(Status.OK, "\n".join([*map(_who_has_which, nodes), *shared]), GPU_REMEDY if shared else "")


def _gpus() -> tuple[str, ...]:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    # By UUID: one GPU has different numbers in ranks that see different ones.
    return tuple(str(torch.cuda.get_device_properties(device).uuid)[:8] for device in range(count))


def _who_has_which(node: Sequence[Sight]) -> str:
    seats = [
        f"rank {sight.rank} → {sight.gpu} (cuda:{sight.chosen} of {len(sight.gpus)}, "
        f"CUDA_VISIBLE_DEVICES {'unset' if sight.variable is None else sight.variable})"
        for sight in node
    ]
    return f"{node[0].node}: {', '.join(seats)}"


def _shared_needlessly(node: Sequence[Sight]) -> str:
    """Who on a node shares a GPU while others idle; empty where nobody need mind."""
    users = Counter(sight.gpu for sight in node)
    idle = sorted({gpu for sight in node for gpu in sight.gpus} - set(users))
    crowded = [gpu for gpu, count in users.items() if count > 1]
    if not (idle and crowded):
        return ""
    ranks = [", ".join(str(sight.rank) for sight in node if sight.gpu == gpu) for gpu in crowded]
    shares = " and ".join(f"ranks {those} share {gpu}" for those, gpu in zip(ranks, crowded, strict=True))
    return f"{node[0].node}: {shares} while {', '.join(idle)} idle"


# --- whether a rank that computes is read ---


def check_window_progress() -> Result:
    """A Get completes while its target computes and only the exchange's thread there looks at MPI."""
    readers, nodes = _readers()
    if not readers:
        return Result(Status.OK, "one rank only: nobody to read from")
    probe = WindowProbe(readers)
    answers = ask_all(probe.measure)
    probe.close(leave=_failed(answers))
    where = f"between {nodes} nodes" if nodes > 1 else "one node only: not tested between nodes"
    return verdict(answers, f"Gets from ranks that compute: {_slowest(answers)}; {where}", WINDOW_REMEDY)


def _readers() -> tuple[list[int], int]:
    """Who reads from rank 0 and is read by it, one rank of each other node; and the number of nodes."""
    node = MPI.COMM_WORLD.Split_type(MPI.COMM_TYPE_SHARED)
    firsts = sorted(set(MPI.COMM_WORLD.allgather(node.bcast(MPI.COMM_WORLD.rank))))
    node.Free()
    return firsts[1:] or list(range(1, MPI.COMM_WORLD.size))[:1], len(firsts)


# --- whether a file is seen everywhere ---


def check_folder(folder: Path) -> Result:
    """What rank 0 writes into the folder is seen there by all, and how much later."""
    seen: list[Answer[Any]] = []
    for _ in range(FILES):
        answers = _show_file(folder)
        seen += answers
        if _failed(answers):
            break
    ranks = MPI.COMM_WORLD.size
    found = f"{folder.resolve()}, rank 0's files seen by {ranks} rank(s): {_slowest(seen)}"
    return verdict(answers, found, FOLDER_REMEDY)


def _show_file(folder: Path) -> list[Answer[Any]]:
    """Rank 0 writes a file and removes it again; the seconds until each rank saw it, once it was told."""
    path = folder / MPI.COMM_WORLD.bcast(f".doctor-{uuid.uuid4().hex}")
    # A first look, before the file is there: what caches then believe is part of what is measured.
    looked = ask_all(lambda: _sees(path))
    if _failed(looked):
        return looked
    try:
        written = ask_all(lambda: _write(path))
        return written if _failed(written) else ask_all(lambda: _seconds_until_seen(path))
    finally:
        if MPI.COMM_WORLD.rank == 0:
            path.unlink(missing_ok=True)


def _write(path: Path) -> None:
    if MPI.COMM_WORLD.rank == 0:
        write_whole(path, _content(path))


def _seconds_until_seen(path: Path) -> float:
    begin = time.monotonic()
    while not _sees(path):
        if time.monotonic() > begin + SEEN_SECONDS:
            raise UserError(
                f"{path.parent.resolve()} has not shown in {SEEN_SECONDS:g} s what rank 0 has written: not the same "
                "folder on every node"
            )
        time.sleep(POLL_SECONDS)
    return time.monotonic() - begin


def _sees(path: Path) -> bool:
    return path in path.parent.iterdir() and path.read_bytes() == _content(path)


def _content(path: Path) -> bytes:
    return path.name.encode() * 1000
