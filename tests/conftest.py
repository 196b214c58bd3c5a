"""Pytest plumbing: one suite, run on 1 rank as usual and on several ranks under mpirun.

Under mpirun every rank runs the same tests in the same order, so tests may use collectives. Rank 0 reports as
usual; the others stay silent until something fails there. A failure on any rank ends the whole job at once:
from then on the ranks may be out of step, and waiting would only turn one failure into a timeout.
"""

import contextlib
import getpass
import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import TextIO

import hypothesis
import pytest
import torch
from mpi4py import MPI

from hpcdistill.distributed.groups import Groups
from launcher import LAUNCHER_VARIABLES
from repository import ROOT

WORLD = MPI.COMM_WORLD
# Without a GPU kernels run in Triton's interpreter. Triton wants to know at its first import, whoever imports it.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
# Ranks that end together would remove the same folders of former runs, and one would find them gone.
if WORLD.size > 1:
    root = Path(tempfile.gettempdir(), f"pytest-rank-{WORLD.rank}-of-{getpass.getuser()}")
    root.mkdir(exist_ok=True)
    os.environ["PYTEST_DEBUG_TEMPROOT"] = str(root)
THREAD_LEVELS = {
    MPI.THREAD_SINGLE: "SINGLE",
    MPI.THREAD_FUNNELED: "FUNNELED",
    MPI.THREAD_SERIALIZED: "SERIALIZED",
    MPI.THREAD_MULTIPLE: "MULTIPLE",
}

# How the reason of a skip begins that is nothing to be mended; in CI any other fails.
EXCUSES = ("GPU: ", "ranks: ")

MpirunResult = subprocess.CompletedProcess[str]

# The same examples on every rank, however slow a shared machine is today.
hypothesis.settings.register_profile("mpi", deadline=None, derandomize=True)
hypothesis.settings.load_profile("mpi")


class QuietTerminal(io.StringIO):
    """The terminal of a rank other than 0: keeps its report in memory until it is worth showing."""

    def __init__(self, terminal: TextIO) -> None:
        super().__init__()
        self.terminal = terminal

    def show(self) -> None:
        self.terminal.write(f"\n===== report of rank {WORLD.rank} =====\n{self.getvalue()}")
        self.terminal.flush()

    def flush(self) -> None:
        # pytest-timeout reports from its timer thread, flushes, and exits the process: now or never.
        if threading.current_thread() is not threading.main_thread():
            self.show()


@pytest.hookimpl(trylast=True)  # after the terminal reporter has been made
def pytest_configure(config: pytest.Config) -> None:
    if WORLD.size > 1:
        config.option.maxfail = 1
    if WORLD.rank > 0:
        writer = config.get_terminal_writer()
        writer._file = QuietTerminal(writer._file)


def pytest_report_header() -> list[str]:
    name, version = MPI.get_vendor()
    vendor = f"{name} {'.'.join(map(str, version))}"
    level = THREAD_LEVELS[MPI.Query_thread()]
    packages = ("horovod", "torch", "triton", "h5py", "mpi4py")
    return [
        f"MPI: {vendor}, thread level {level}, rank {WORLD.rank} of {WORLD.size}",
        "versions: " + ", ".join(f"{name} {_version(name)}" for name in packages),
    ]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave tests that start jobs of their own, and long ones without ranks, to the 1-rank suite."""
    if WORLD.size == 1:
        return
    left = [item for item in items if item.get_closest_marker("launch") or item.get_closest_marker("alone")]
    items[:] = [item for item in items if item not in left]
    config.hook.pytest_deselected(items=left)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, None, None]:
    if _forbidden_skips(session.config) and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    yield
    if session.exitstatus != 0 and WORLD.size > 1:
        terminal = session.config.get_terminal_writer()._file
        terminal.show() if isinstance(terminal, QuietTerminal) else terminal.flush()
        time.sleep(1)  # the other ranks may be about to report the same failure
        WORLD.Abort(int(session.exitstatus))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for reason in _forbidden_skips(config):
        terminalreporter.write_line(f"FAILED, as CI has to run what was skipped: {reason}", red=True)


def _forbidden_skips(config: pytest.Config) -> list[str]:
    """Return the reasons of what was skipped in CI without an excuse."""
    if not os.environ.get("CI"):
        return []
    skipped = config.pluginmanager.get_plugin("terminalreporter").stats.get("skipped", [])
    reasons = {report.longrepr[2].removeprefix("Skipped: ") for report in skipped}
    return sorted(reason for reason in reasons if not reason.startswith(EXCUSES))


@pytest.fixture(scope="session")
def world() -> MPI.Intracomm:
    return WORLD


@pytest.fixture(params=[2, 4])
def groups(request: pytest.FixtureRequest) -> Groups:
    """The world in 2 or 4 groups, without Horovod."""
    count = request.param
    if WORLD.size % count:
        pytest.skip(f"ranks: {WORLD.size} do not make {count} groups")
    return Groups.split(WORLD, (WORLD.size // count,) * count, torch.device("cpu"))


@pytest.fixture
def unequal_groups() -> Groups:
    """The world in one group of one rank and one of all others, without Horovod."""
    return Groups.split(WORLD, (1, WORLD.size - 1), torch.device("cpu"))


@pytest.fixture(scope="session")
def cluster() -> Iterator[object]:
    """A Slurm with virtual nodes, booted for all tests that want it."""
    from slurm_cluster import booted

    with booted() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def mpirun_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository as it is at a site whose slurm/env.sh starts ranks by mpirun."""
    site = tmp_path_factory.mktemp("site")
    for path in ROOT.iterdir():
        if path.name != "slurm":
            (site / path.name).symlink_to(path)
    shutil.copytree(ROOT / "slurm", site / "slurm")
    with (site / "slurm" / "env.sh").open("a") as script:
        script.write("LAUNCH=(mpirun)\n")
    return site


@pytest.fixture(scope="session")
def mpirun() -> Callable[..., MpirunResult]:
    """`mpirun(n, *python_args)`: Python on n ranks, its output captured; all of it is killed on a timeout.

    `within` is a command that runs a command somewhere else, as nsenter does.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    launcher = shutil.which("mpirun", path=path)
    assert launcher, f"no mpirun in {path}: run `make setup`"

    # The default timeout is below pytest's own, which would end this process and leave the ranks behind.
    def run(
        ranks: int,
        *python_args: str | Path,
        timeout: float = 100,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        within: Sequence[str] = (),
    ) -> MpirunResult:
        command = [*within, launcher, "-n", str(ranks), sys.executable, *map(str, python_args)]
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env=_outside_mpi() | (env or {}),
            start_new_session=True,
        )
        stdout, stderr = _output(process, timeout)
        return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)

    return run


def _outside_mpi() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHER_VARIABLES)}


def _output(process: subprocess.Popen[str], timeout: float) -> tuple[str, str]:
    try:
        return process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        _kill_job(process)
        stdout, stderr = process.communicate(timeout=5)
        pytest.fail(f"{process.args!r} had not ended after {timeout} s\n{stdout}\n{stderr}")
    except BaseException:  # Ctrl-C
        _kill_job(process)
        raise


def _kill_job(process: subprocess.Popen[str]) -> None:
    # Open MPI puts its ranks into process groups of their own, which only mpirun can end: ask it first.
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=5)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
