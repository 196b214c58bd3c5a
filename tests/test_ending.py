"""Every process ends, whatever it may print, wait for or be given."""

from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

pytestmark = pytest.mark.launch

Run = Callable[..., CompletedProcess[str]]

CANNOT_PRINT = """
import os, sys
from hpcdistill.groups import Groups
from hpcdistill.job import end_job
os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
groups = Groups.create(2)
if groups.group == 0:
    end_job(RuntimeError("cannot be told"))
groups.world.Barrier()  # for ever
"""


def test_an_error_that_cannot_be_printed_ends_all_ranks(mpirun: Run) -> None:
    result = mpirun(2, "-c", CANNOT_PRINT, timeout=60)
    assert result.returncode != 0
    assert "cannot be told" not in result.stderr


HANGS_IN_ABORT = """
import signal, time
from hpcdistill import job
job.ENDING_SECONDS = 1
job._abort = lambda *_: time.sleep(1000)
job.start_mpi()
job.end_job(RuntimeError("told"))
"""


def test_an_abort_that_hangs_is_ended(mpirun: Run) -> None:
    result = mpirun(2, "-c", HANGS_IN_ABORT, timeout=60)
    assert result.returncode != 0
