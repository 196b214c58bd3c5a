"""Check that the ranks of a Slurm job are those that Slurm has started."""

from __future__ import annotations

import os
import re
import subprocess

from mpi4py import MPI

from hpcdistill.distributed.checks import require_one_world
from hpcdistill.doctor.ask_all import ask_all, summarize
from hpcdistill.doctor.check import Check, Result, Status
from hpcdistill.errors import UserError

# Set by Hydra and by Open MPI's mpirun for each rank; not by srun, whose variables mpirun's ranks inherit.
MPIRUN_VARIABLES = ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_SIZE")

ALLOCATION_REMEDY = "run it inside one: sbatch slurm/doctor.sbatch, or by srun"
REMEDY = (
    "start all ranks with one srun, as slurm/env.sh does, or with an mpirun that takes their number from Slurm; "
    "or change sbatch --ntasks"
)


def check_job() -> Result:
    """Check that MPI and Slurm agree on the number and the numbering of ranks. Collective over the world."""
    job, size = os.environ.get("SLURM_JOB_ID"), MPI.COMM_WORLD.size
    if not job:
        return Result(Status.FAIL, "this is no allocation of Slurm: SLURM_JOB_ID is not set", ALLOCATION_REMEDY)
    require_one_world()
    by_mpirun = any(name in os.environ for name in MPIRUN_VARIABLES)
    answers = ask_all(_require_tasks_of_job if by_mpirun else _require_same_as_srun)
    return summarize(answers, f"{job}, {size} rank(s) by {'mpirun' if by_mpirun else 'srun'}", REMEDY)


def _require_same_as_srun() -> None:
    for variable, value in [("SLURM_STEP_NUM_TASKS", MPI.COMM_WORLD.size), ("SLURM_PROCID", MPI.COMM_WORLD.rank)]:
        if os.environ.get(variable) != str(value):
            raise UserError(
                f"{variable} is {os.environ.get(variable, 'not set')}, but MPI made this "
                f"rank {MPI.COMM_WORLD.rank} of {MPI.COMM_WORLD.size}"
            )


def _require_tasks_of_job() -> None:
    if MPI.COMM_WORLD.rank == 0 and (tasks := _tasks_of_job()) not in (None, MPI.COMM_WORLD.size):
        raise UserError(f"mpirun has started {MPI.COMM_WORLD.size} ranks, the allocation is for {tasks} tasks")


def _tasks_of_job() -> int | None:
    """Return the number of tasks that sbatch was given as --ntasks, None if it was given none.

    An mpirun that starts its helpers with srun, one on each node, leaves the number of helpers in SLURM_NTASKS: then
    Slurm itself is asked.
    """
    if "SLURM_STEP_ID" not in os.environ:
        return int(os.environ["SLURM_NTASKS"]) if "SLURM_NTASKS" in os.environ else None
    command = ["scontrol", "show", "job", os.environ["SLURM_JOB_ID"]]
    job = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    tasks = re.search(r"NumTasks=(\d+)", job)
    return int(tasks[1]) if tasks else None


CHECK: Check = ("Slurm job", check_job, REMEDY)
