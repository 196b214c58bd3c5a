"""One suite for one rank, as usual, and for several ranks under mpirun; and the fixtures of all tests.

Under mpirun all ranks run the same tests in the same order, so that tests may use collectives. Rank 0 reports as usual,
the others only after a failure of theirs. A failure on any rank ends the whole job at once: ranks that go on might wait
for the failed one until their timeout.

The tests of losses and kernels need torch, pytest, hypothesis and numpy alone. Without an MPI they run on 1 rank.
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
from typing import Any, TextIO

import hypothesis
import pytest
import torch

from hpcdistill.distributed.groups import Groups
from hpcdistill.distributed.single import SingleProcess
from hpcdistill.output import log_to_stderr
from launcher import LAUNCHER_VARIABLES
from repository import ROOT

MPI: Any = None
WORLD: Any = SingleProcess()
try:
    from mpi4py import MPI  # type: ignore[no-redef]

    WORLD = MPI.COMM_WORLD
except (ImportError, RuntimeError):  # no mpi4py; no library of MPI
    pass
# Without a GPU, kernels run in Triton's interpreter; Triton reads this variable when it is first imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
# Each rank has its own temporary folders: ranks that end together would otherwise remove the same ones.
if WORLD.size > 1:
    root = Path(tempfile.gettempdir(), f"pytest-rank-{WORLD.rank}-of-{getpass.getuser()}")
    root.mkdir(exist_ok=True)
    os.environ["PYTEST_DEBUG_TEMPROOT"] = str(root)
# torch begins each process with another seed. This one is for what test modules draw when they are imported.
torch.manual_seed(WORLD.rank)

# Beginnings of the reasons for which CI may skip a test.
EXCUSES = ("GPU: ", "ranks: ")

MpirunResult = subprocess.CompletedProcess[str]

# The same examples on every rank, and no deadline, since a shared machine may be slow.
hypothesis.settings.register_profile("mpi", deadline=None, derandomize=True)
hypothesis.settings.load_profile("mpi")


class QuietTerminal(io.StringIO):
    """Terminal of a rank other than 0, which keeps the report in memory until a test fails."""

    def __init__(self, terminal: TextIO) -> None:
        super().__init__()
        self.terminal = terminal

    def show(self) -> None:
        self.terminal.write(f"\n===== report of rank {WORLD.rank} =====\n{self.getvalue()}")
        self.terminal.flush()

    def flush(self) -> None:
        # pytest-timeout reports from its own thread, flushes, and then exits the process.
        if threading.current_thread() is not threading.main_thread():
            self.show()


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Declare the settings of pytest-timeout where it is not installed: pytest refuses unknown ones."""
    if not pluginmanager.hasplugin("timeout"):
        for name in ("timeout", "timeout_method"):
            parser.addini(name, "Unused: pytest-timeout is not installed.")


@pytest.hookimpl(trylast=True)  # after the terminal reporter has been made
def pytest_configure(config: pytest.Config) -> None:
    if not config.pluginmanager.hasplugin("timeout"):
        config.addinivalue_line("markers", "timeout(seconds): unused, as pytest-timeout is not installed")
    log_to_stderr()  # as the program does: tests read warnings there
    if WORLD.size > 1:
        config.option.maxfail = 1
    if WORLD.rank > 0:
        writer = config.get_terminal_writer()
        writer._file = QuietTerminal(writer._file)


def pytest_report_header() -> list[str]:
    packages = ("horovod", "torch", "triton", "h5py", "mpi4py")
    return [
        f"MPI: {_describe_mpi()}, rank {WORLD.rank} of {WORLD.size}",
        "versions: " + ", ".join(f"{name} {_version(name)}" for name in packages),
    ]


def _describe_mpi() -> str:
    if MPI is None:
        return "none"
    levels = {getattr(MPI, f"THREAD_{name}"): name for name in ("SINGLE", "FUNNELED", "SERIALIZED", "MULTIPLE")}
    name, version = MPI.get_vendor()
    return f"{name} {'.'.join(map(str, version))}, thread level {levels[MPI.Query_thread()]}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep each file, and all that needs Slurm, in one worker of xdist; deselect what is for the 1-rank suite only."""
    if WORLD.size == 1:
        for item in items if config.pluginmanager.hasplugin("xdist") else ():
            item.add_marker(pytest.mark.xdist_group("slurm" if item.get_closest_marker("slurm") else str(item.path)))
        return
    left = [item for item in items if item.get_closest_marker("launch") or item.get_closest_marker("alone")]
    items[:] = [item for item in items if item not in left]
    config.hook.pytest_deselected(items=left)


def pytest_runtest_setup() -> None:
    """Let a test draw the same numbers in every run, and others on each rank."""
    torch.manual_seed(WORLD.rank)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    # Workers of xdist can send no text with surrogates, which stand for bytes of file names.
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, None, None]:
    if _forbidden_skips(session.config) and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    yield
    if session.exitstatus != 0 and WORLD.size > 1:
        terminal = session.config.get_terminal_writer()._file
        terminal.show() if isinstance(terminal, QuietTerminal) else terminal.flush()
        time.sleep(1)  # time for other ranks to report the same failure
        WORLD.Abort(int(session.exitstatus))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for reason in _forbidden_skips(config):
        terminalreporter.write_line(f"FAILED: CI must not skip a test because of: {reason}", red=True)


def _forbidden_skips(config: pytest.Config) -> list[str]:
    """Return the reasons of skips in CI that are no excuse."""
    if not os.environ.get("CI") or hasattr(config, "workerinput"):  # workers of xdist report to its controller
        return []
    skipped = config.pluginmanager.get_plugin("terminalreporter").stats.get("skipped", [])
    reasons = {report.longrepr[2].removeprefix("Skipped: ") for report in skipped}
    return sorted(reason for reason in reasons if not reason.startswith(EXCUSES))


@pytest.fixture(scope="session")
def world() -> Any:
    """Return the communicator of all ranks."""
    return WORLD


@pytest.fixture(params=[2, 4])
def groups(request: pytest.FixtureRequest) -> Groups:
    """Split the world into 2 or 4 groups, without Horovod."""
    count = request.param
    if WORLD.size % count:
        pytest.skip(f"ranks: {WORLD.size} do not make {count} groups")
    return Groups.split(WORLD, (WORLD.size // count,) * count, torch.device("cpu"))


@pytest.fixture
def unequal_groups() -> Groups:
    """Split the world into a group of one rank and a group of all others, without Horovod."""
    return Groups.split(WORLD, (1, WORLD.size - 1), torch.device("cpu"))


@pytest.fixture(scope="session")
def cluster() -> Iterator[object]:
    """Boot a Slurm with virtual nodes, for all tests that need it."""
    from slurm_cluster import booted

    with booted() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def mpirun_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Link the repository into a folder where slurm/env.sh starts ranks by mpirun."""
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
    """Return `mpirun(n, *python_args)`, which runs Python on n ranks and captures its output.

    A timeout kills all ranks. `within` is a command, such as nsenter, that runs mpirun elsewhere.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    launcher = shutil.which("mpirun", path=path)
    assert launcher, f"no mpirun in {path}: run `make setup`"

    # The default timeout is below pytest's, which ends this process without its ranks.
    def run(
        ranks: int,
        *python_args: str | Path,
        timeout: float = 200,
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
    # First ask mpirun: only it can end the ranks of Open MPI, which have process groups of their own.
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=5)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
