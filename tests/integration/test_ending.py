"""Every process ends: with output that fails, calls that hang, and ranks that have different settings."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

pytestmark = pytest.mark.launch

Run = Callable[..., CompletedProcess[str]]

CANNOT_PRINT = """
import os, sys
from hpcdistill.distributed.groups import Groups
from hpcdistill.distributed.launch import end_job
os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
groups = Groups.create(2)
if groups.group == 0:
    end_job(RuntimeError("cannot be told"))
groups.world.Barrier()  # forever
"""


def test_an_error_that_cannot_be_printed_ends_all_ranks(mpirun: Run) -> None:
    result = mpirun(2, "-c", CANNOT_PRINT)
    assert result.returncode != 0
    assert "cannot be told" not in result.stderr


HANGS_IN_ABORT = """
import signal, time
from hpcdistill.distributed import launch as job
job.ENDING_SECONDS = 1
job._abort = lambda *_: time.sleep(1000)
job.start_mpi()
job.end_job(RuntimeError("told"))
"""


def test_an_abort_that_hangs_is_ended(mpirun: Run) -> None:
    result = mpirun(2, "-c", HANGS_IN_ABORT)
    assert result.returncode != 0


RANKS_DIFFER = """
import os, sys
from hpcdistill.cli.main import main
rank = os.environ.get("PMI_RANK") or os.environ["OMPI_COMM_WORLD_RANK"]
sys.exit(main(["train", *sys.argv[1:], *(["--codistill.weight=0"] if rank == "1" else [])]))
"""


def test_ranks_with_different_settings_end(mpirun: Run, tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text(f'run_dir = "{tmp_path / "run"}"\ndata.path = "none.h5"')
    result = mpirun(2, "-c", RANKS_DIFFER, config)
    assert result.returncode != 0
    assert "codistill.weight differs between ranks: 1.0 on world rank 0, 0.0 on rank 1; give all" in result.stderr
    assert not (tmp_path / "run").exists()


OPENS_FILES_FOREVER = """
from itertools import count
from hpcdistill.distributed.launch import end_job
try:
    files = [open("/dev/null") for _ in count()]
except OSError as error:
    end_job(error)
"""


def test_too_few_open_files_are_told_of() -> None:
    command = ["sh", "-c", 'ulimit -n 64; exec "$@"', "sh", sys.executable, "-c", OPENS_FILES_FOREVER]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert result.returncode == 1
    assert (
        "Too many open files: '/dev/null'; this process may open 64: allow more, as by ulimit -n 1024" in result.stderr
    )
    assert "Traceback" not in result.stderr
