"""Constants and checks for the table of doctor and the results of its checks."""

from mpi4py import MPI

from hpcdistill.doctor.check import Result, Status


def row_of(output: str, name: str) -> str:
    """Return the row of this name with the indented lines below it."""
    lines = output.splitlines()
    begin = next(index for index, line in enumerate(lines) if line.startswith(f"{name} "))
    end = next(index for index in range(begin + 1, len(lines)) if not lines[index].startswith(" "))
    return "\n".join(lines[begin:end])


def assert_last_rank_failed(result: Result, problem: str) -> None:
    """Check that the last rank reports its own failure, and that rank 0 reports it too."""
    rank, last = MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size - 1
    if rank in (0, last):
        assert result.status is Status.FAIL
        assert f"rank {last} on " in result.found
        assert problem in result.found
        assert result.remedy
    else:
        assert result.status is Status.OK
