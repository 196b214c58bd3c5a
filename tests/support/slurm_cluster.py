"""Real Slurm with virtual nodes, booted on this machine for the tests that need it."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from repository import ROOT

T = TypeVar("T")

DAEMONS = Path(__file__).with_name("slurm_daemons.sh")
NODES = 4
PATIENCE = 300
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}
NEEDED = ("sbatch", "srun", "slurmctld", "slurmd", "munged", "unshare")
MISSING = [name for name in NEEDED if not shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin")]

on_slurm = [
    pytest.mark.launch,
    pytest.mark.slurm,
    pytest.mark.timeout(4 * PATIENCE),
    pytest.mark.skipif(
        bool(MISSING), reason=f"no {', '.join(MISSING)}: Slurm is NOT TESTED here; apt install slurm-wlm munge"
    ),
]


@dataclass(frozen=True)
class Job:
    """End of a job: its state, exit code and output."""

    state: str
    exit_code: int
    output: str


@dataclass(frozen=True)
class Cluster:
    """Slurm that accepts jobs."""

    folder: Path
    environment: dict[str, str]
    daemons: subprocess.Popen[str]

    def run(self, *sbatch_args: str | Path, submit_dir: Path = ROOT) -> Job:
        """Submit a job and wait for its end."""
        number = self.submit(*sbatch_args, submit_dir=submit_dir)
        try:
            return self.wait(number)
        finally:
            self.slurm("scancel", number)

    def submit(self, *sbatch_args: str | Path, submit_dir: Path = ROOT) -> str:
        """Submit a job, for two nodes unless the arguments say otherwise; return its number."""
        output = f"--output={self.folder / 'job-%j.out'}"
        return self.slurm("sbatch", "--parsable", output, "--nodes=2", *sbatch_args, cwd=submit_dir).strip()

    def wait(self, number: str) -> Job:
        """Wait for the end of a job."""
        self.wait_for(number, lambda: self.state(number) in ENDED)
        record = self._record(number)
        return Job(record["JobState"], int(record["ExitCode"].split(":")[0]), self.output(number))

    def wait_for(self, number: str, condition: Callable[[], T]) -> T:
        """Return the condition's value once it is true; fail after `PATIENCE` seconds, or if the job ends before."""
        end = time.monotonic() + PATIENCE
        while not (value := condition()):
            if time.monotonic() > end or (self.state(number) in ENDED and not condition()):
                pytest.fail(
                    f"job {number} got no further in {PATIENCE} s than\n{self.output(number)}\n"
                    f"{self._record(number)}\n{self.logs()}"
                )
            time.sleep(0.1)
        return value

    def output(self, number: str) -> str:
        """Return the output of the job so far."""
        path = self.folder / f"job-{number}.out"
        return path.read_text() if path.exists() else ""

    def slurm(self, *command: str | Path, cwd: Path = ROOT) -> str:
        """Run a Slurm command and return its output."""
        result = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=self.environment, timeout=99)
        assert result.returncode == 0, f"{command}: {result.stderr}"
        return result.stdout

    def kill_node(self, node: str) -> None:
        """Cut the power of a node."""
        self._command("kill", node)

    def boot_node(self, node: str) -> None:
        """Start a killed node again; it then accepts jobs."""
        self._command("boot", node)

    def logs(self) -> str:
        """Return the ends of the daemons' logs, and the processes of Slurm on this machine."""
        tails = [f"{path.name}: {path.read_text()[-2000:]}" for path in (self.folder / "log").iterdir()]
        command = ["ps", "axfwwo", "pid,stat,wchan:20,etime,args"]
        processes = subprocess.run(command, capture_output=True, text=True).stdout
        return "\n".join([*tails, *re.findall(".*(?:slurm|hpcdistill train).*", processes)])

    def state(self, number: str) -> str:
        """Return the state of a job, such as RUNNING."""
        return self._record(number)["JobState"]

    def node_of(self, number: str) -> str:
        """Return the node on which a job of one node runs."""
        return self._record(number)["NodeList"]

    def _command(self, command: str, node: str) -> None:
        assert self.daemons.stdin is not None
        assert self.daemons.stdout is not None
        self.daemons.stdin.write(f"{command} {node}\n")
        self.daemons.stdin.flush()
        assert self.daemons.stdout.readline() == "ready\n", self.logs()

    def _record(self, number: str) -> dict[str, str]:
        return dict(re.findall(r"(\w+)=(\S*)", self.slurm("scontrol", "show", "job", number)))


@contextlib.contextmanager
def booted() -> Iterator[Cluster]:
    """Boot a cluster, which lives as long as the block."""
    # Not under pytest's folder, which only its owner may enter: munge refuses that.
    with tempfile.TemporaryDirectory(prefix="hpcdistill-slurm-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        with _daemons(folder) as daemons:
            environment = dict(os.environ) | {"SLURM_CONF": str(folder / "slurm.conf")} | LOOPBACK
            cluster = Cluster(folder, environment, daemons)
            _require_pmi(cluster)
            yield cluster


def _require_pmi(cluster: Cluster) -> None:
    probe = ["bash", "-c", '. slurm/env.sh && "${LAUNCH[@]}" --ntasks=1 true']
    result = subprocess.run(probe, capture_output=True, text=True, cwd=ROOT, env=cluster.environment, timeout=60)
    if "can not load PMIx library" in result.stderr:
        pytest.skip("srun finds no PMIx: Slurm is NOT TESTED with Open MPI; Debian, Ubuntu: apt install libpmix-dev")


# By default Open MPI does not use the loopback between nodes, which is all that the virtual nodes have.
LOOPBACK = {"OMPI_MCA_btl_tcp_if_include": "lo", "OMPI_MCA_mpi_yield_when_idle": "1"}


@contextlib.contextmanager
def _daemons(folder: Path) -> Iterator[subprocess.Popen[str]]:
    command = [str(DAEMONS), str(folder), *map(str, _free_ports(1 + NODES))]
    # In a new session, out of reach of Ctrl-C; it ends when its pipe is closed, also by the death of this process.
    with (folder / "daemons.err").open("w") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        if process.stdout.readline() != "ready\n":
            problem = (folder / "daemons.err").read_text()
            if process.wait(timeout=20) == 3:
                pytest.skip(f"no virtual nodes: Slurm is NOT TESTED here; {problem}")
            pytest.fail(f"Slurm does not start:\n{problem}")
        yield process
    finally:
        process.stdin.close()
        process.wait(timeout=20)
        process.stdout.close()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
