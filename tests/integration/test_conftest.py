"""Failures, timeouts and skips under mpirun: a failure on one rank ends all ranks soon, with an exit status > 0."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from repository import ROOT

PYPROJECT = ROOT / "pyproject.toml"
PytestRun = Callable[..., CompletedProcess[str]]

pytestmark = pytest.mark.launch

FAILS_ON_RANK_1 = """
def test_passes_everywhere(world):
    assert world.allreduce(1) == world.size

def test_fails_on_rank_1(world):
    assert world.rank != 1, "the message of rank 1"

def test_would_hang_without_rank_1(world):
    world.barrier()
"""

HANGS_ON_RANK_1 = """
import time, pytest

@pytest.mark.timeout(2)
def test_hangs_on_rank_1(world):
    time.sleep(60 * world.rank)

def test_waits_for_rank_1(world):
    world.barrier()
"""


@pytest.fixture
def pytest_on_two_ranks(mpirun: Callable[..., CompletedProcess[str]], tmp_path: Path) -> PytestRun:
    def run(tests: str, **environment: str) -> CompletedProcess[str]:
        shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
        (tmp_path / "test_sample.py").write_text(tests)
        plain = ["--color=no", "-p", "no:cacheprovider"]  # Open MPI gives rank 0 a terminal
        return mpirun(2, "-m", "pytest", "-c", PYPROJECT, *plain, tmp_path, env=environment)

    return run


def test_failure_on_one_rank_ends_the_job(pytest_on_two_ranks: PytestRun) -> None:
    result = pytest_on_two_ranks(FAILS_ON_RANK_1)
    assert result.returncode != 0
    assert "report of rank 1" in result.stdout
    assert "the message of rank 1" in result.stdout


def test_timeout_on_one_rank_shows_where_it_hung(pytest_on_two_ranks: PytestRun) -> None:
    result = pytest_on_two_ranks(HANGS_ON_RANK_1)
    assert result.returncode != 0
    assert "report of rank 1" in result.stdout
    assert "time.sleep(60 * world.rank)" in result.stdout


SKIPS = """
import pytest

def test_runs(): pass

@pytest.mark.launch
def test_launches(): assert False

@pytest.mark.parametrize("reason", ["GPU: none here", "ranks: too few", "no such program"])
def test_skips(reason): pytest.skip(reason)
"""


def test_rank_0_reports_success_and_skips_and_launches_nothing(pytest_on_two_ranks: PytestRun) -> None:
    result = pytest_on_two_ranks(SKIPS, CI="")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("1 passed, 3 skipped, 1 deselected") == 1
    assert "rank 0 of 2" in result.stdout
    assert "rank 1 of 2" not in result.stdout
    told = set(re.findall(r"^SKIPPED \[1\] .*test_sample.py:\d+: (.*)", result.stdout, re.MULTILINE))
    assert told == {"GPU: none here", "ranks: too few", "no such program"}
    assert "FAILED: CI" not in result.stdout


def test_a_skip_without_an_excuse_fails_in_ci(pytest_on_two_ranks: PytestRun) -> None:
    result = pytest_on_two_ranks(SKIPS, CI="true")
    assert result.returncode != 0
    forbidden = re.findall(r"^FAILED: CI must not skip a test because of: (.*)", result.stdout, re.MULTILINE)
    assert set(forbidden) == {"no such program"}


def test_mpirun_kills_what_does_not_end(mpirun: Callable[..., CompletedProcess[str]]) -> None:
    endless = "import time; print('started', flush=True); time.sleep(60)"
    with pytest.raises(pytest.fail.Exception, match=r"had not ended after 3 s\nstarted"):
        mpirun(2, "-c", endless, timeout=3)
