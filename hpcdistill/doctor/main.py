"""The table of checks: `hpcdistill doctor`.

A check is a function that returns a `Result`. Under mpirun or srun all checks are collective, so doctor is started just
as a run would be. Each check imports what it needs: a package that is missing fails its own row only.
"""

from __future__ import annotations

from pathlib import Path

from hpcdistill.distributed.launch import start_mpi
from hpcdistill.doctor import gradients, machine, mpi
from hpcdistill.doctor.check import Check, Status, deadline, row, run_check
from hpcdistill.errors import UserError

CHECK_SECONDS = 300.0  # importing torch for the first time, from a busy filesystem, takes minutes


def check_all(job_folder: Path | None = None) -> int:
    """Run the checks of this machine and print them. Collective over the world.

    Args:
        job_folder: where runs of a Slurm job will be written; with it, also check what such a job needs.

    Returns:
        The exit status: 0, or 1 where training cannot run.
    """
    checks = [mpi.WORLD, *(mpi.CHECKS if mpi.has_mpi() else []), *gradients.CHECKS, *machine.CHECKS]
    if job_folder is not None:
        checks += _job_checks(job_folder)
    return print_checks(checks)


def print_checks(checks: list[Check]) -> int:
    """Run `checks` and print a table of their results; return the exit status."""
    rank = _rank()
    results = {}
    for name, check, remedy in checks:
        with deadline(CHECK_SECONDS, f"the check {name!r}"):
            results[name] = run_check(check, remedy)
        if rank > 0 and results[name].status is Status.FAIL:  # printed at once: the others may now wait for this rank
            print(f"\nOn rank {rank}:\n{row(name, results[name])}", flush=True)
    failed = [name for name, result in results.items() if result.status is Status.FAIL]
    if rank == 0:
        print("\n".join(map(row, results, results.values())))
        print(f"\nTraining cannot run: {', '.join(failed)}." if failed else "\nTraining can run.", flush=True)
    return 1 if failed else 0


def _job_checks(folder: Path) -> list[Check]:
    """Return the checks of a Slurm job; none where MPI does not load, which the other checks will report."""
    try:
        start_mpi()  # which bounds the wait for the other ranks; the import of mpi4py does not
        from hpcdistill.doctor import gpu_binding, shared_folder, slurm_job, window_progress
    except (ImportError, RuntimeError):
        return []
    return [slurm_job.CHECK, gpu_binding.CHECK, window_progress.CHECK, shared_folder.check_of(folder)]


def _rank() -> int:
    """Return this process's rank, 0 where ranks cannot find each other."""
    try:
        return mpi.world().rank
    except UserError:
        return 0
