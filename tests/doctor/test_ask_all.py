"""A rank that hangs in a check."""

from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

RANK_1_HANGS = """
import time
from mpi4py import MPI
from hpcdistill.doctor import ask_all
ask_all.TASK_SECONDS = 1
ask_all.ask_all(lambda: time.sleep(1000 * MPI.COMM_WORLD.rank))
"""


@pytest.mark.launch
def test_a_rank_that_hangs_is_named(mpirun: Callable[..., CompletedProcess[str]]) -> None:
    result = mpirun(2, "-c", RANK_1_HANGS)
    assert result.returncode != 0
    assert "[world rank 1 of 2]" in result.stderr
    assert "has not ended" in result.stderr
