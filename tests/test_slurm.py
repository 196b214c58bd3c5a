"""The main job under a real Slurm with two virtual nodes, booted for these tests on this machine."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

T = TypeVar("T")

ROOT = Path(__file__).parents[1]
DAEMONS = Path(__file__).with_name("slurm_daemons.sh")
NODES = 2
PATIENCE = 150
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}
NEEDED = ("sbatch", "srun", "slurmctld", "slurmd", "munged", "unshare")
MISSING = [name for name in NEEDED if not shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin")]

pytestmark = [
    pytest.mark.launch,
    pytest.mark.slurm,
    pytest.mark.timeout(4 * PATIENCE),
    pytest.mark.skipif(
        bool(MISSING), reason=f"no {', '.join(MISSING)}: Slurm is NOT TESTED here; apt install slurm-wlm munge"
    ),
]

SAY_WHERE = """#!/usr/bin/env bash
. slurm/env.sh
"${LAUNCH[@]}" python -c '
import os
from mpi4py import MPI
print("rank", MPI.COMM_WORLD.rank, "of", MPI.COMM_WORLD.size, "on", os.uname().nodename, flush=True)'
"""


@dataclass(frozen=True)
class Job:
    """How a job ended."""

    state: str
    exit_code: int
    output: str


@dataclass(frozen=True)
class Cluster:
    """A Slurm that takes jobs."""

    folder: Path
    environment: dict[str, str]

    def run(self, *sbatch_args: str | Path) -> Job:
        """Submit a job and wait for its end."""
        number = self.submit(*sbatch_args)
        try:
            return self.wait(number)
        finally:
            self.slurm("scancel", number)

    def submit(self, *sbatch_args: str | Path) -> str:
        """Submit a job from the repository's root; its number."""
        output = self.folder / "job-%j.out"
        return self.slurm("sbatch", "--parsable", f"--output={output}", f"--nodes={NODES}", *sbatch_args).strip()

    def wait(self, number: str) -> Job:
        """How the job ended."""
        self.wait_for(number, lambda: self._record(number)["JobState"] in ENDED)
        record = self._record(number)
        return Job(record["JobState"], int(record["ExitCode"].split(":")[0]), self.output(number))

    def wait_for(self, number: str, condition: Callable[[], T]) -> T:
        """The condition's value once it is true; gives up before pytest-timeout would end the whole suite."""
        end = time.monotonic() + PATIENCE
        while not (value := condition()):
            if time.monotonic() > end:
                pytest.fail(f"job {number} got no further in {PATIENCE} s than\n{self.output(number)}")
            time.sleep(0.1)
        return value

    def output(self, number: str) -> str:
        """What the job has printed so far."""
        path = self.folder / f"job-{number}.out"
        return path.read_text() if path.exists() else ""

    def slurm(self, *command: str | Path) -> str:
        """What the Slurm command prints."""
        result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=self.environment, timeout=30)
        assert result.returncode == 0, f"{command}: {result.stderr}"
        return result.stdout

    def _record(self, number: str) -> dict[str, str]:
        return dict(re.findall(r"(\w+)=(\S*)", self.slurm("scontrol", "show", "job", number)))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    # Not under pytest's own folder, which only its owner may enter: munge refuses that.
    with tempfile.TemporaryDirectory(prefix="hpcdistill-slurm-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        with _daemons(folder):
            cluster = Cluster(folder, dict(os.environ) | {"SLURM_CONF": str(folder / "slurm.conf")} | LOOPBACK)
            _require_pmi(cluster)
            yield cluster


def _require_pmi(cluster: Cluster) -> None:
    probe = ["bash", "-c", '. slurm/env.sh && "${LAUNCH[@]}" --ntasks=1 true']
    result = subprocess.run(probe, capture_output=True, text=True, cwd=ROOT, env=cluster.environment, timeout=60)
    if "can not load PMIx library" in result.stderr:
        pytest.skip("srun finds no PMIx: Slurm is NOT TESTED with Open MPI; Debian, Ubuntu: apt install libpmix-dev")


# Open MPI leaves the loopback out between nodes unless told otherwise; all virtual nodes share it.
LOOPBACK = {"OMPI_MCA_btl_tcp_if_include": "lo", "OMPI_MCA_mpi_yield_when_idle": "1"}


@contextlib.contextmanager
def _daemons(folder: Path) -> Iterator[None]:
    command = [str(DAEMONS), str(folder), *map(str, _free_ports(1 + NODES))]
    # A session of its own keeps Ctrl-C from it; it ends when the pipe to it is closed, even by our sudden death.
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=(folder / "daemons.err").open("w"),
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
        yield
    finally:
        process.stdin.close()
        process.wait(timeout=20)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for number in range(100):
        (folder / f"{number}.txt").write_text("All models teach each other what they have learnt.\n" * 40)
    data = folder / "data.h5"
    subprocess.run(
        [sys.executable, "-m", "hpcdistill", "prepare", "text", "--input", folder, "--output", data],
        check=True,
        cwd=ROOT,
    )
    return data


def short_run(tokens: Path, run_dir: Path) -> list[str]:
    return [
        "configs/demo.toml",
        f"--run_dir={run_dir}",
        f"--data.path={tokens}",
        "--data.batch_size=4",
        "--data.sequence_length=16",
        "--model.hidden=16",
        "--codistill.burn_in=10",
        "--codistill.exchange_interval=5",
        "--train.steps=30",
        "--train.validate_every=10",
    ]


def test_one_world_over_two_nodes(cluster: Cluster) -> None:
    script = cluster.folder / "say_where.sbatch"
    script.write_text(SAY_WHERE)
    job = cluster.run("--ntasks=4", script)
    assert job.state == "COMPLETED", job.output
    lines = re.findall(r"rank (\d) of (\d) on (\w+)", job.output)
    assert sorted(rank for rank, _, _ in lines) == ["0", "1", "2", "3"]
    assert {size for _, size, _ in lines} == {"4"}
    assert {node for _, _, node in lines} == {"node1", "node2"}


def test_the_main_job(cluster: Cluster, tokens: Path, tmp_path: Path) -> None:
    job = cluster.run("--ntasks=4", "slurm/train.sbatch", *short_run(tokens, tmp_path / "run"))
    assert (job.state, job.exit_code) == ("COMPLETED", 0), job.output
    assert "on node[1-2], 4 ranks, SLURM_RESTART_COUNT=0" in job.output
    for group in range(2):
        lines = (tmp_path / f"run/metrics-g{group}.jsonl").read_text().splitlines()
        assert any(json.loads(line).get("step") == 30 for line in lines), lines


def test_a_failing_run_fails_the_job(cluster: Cluster, tokens: Path, tmp_path: Path) -> None:
    begin = time.monotonic()
    job = cluster.run("--ntasks=4", "slurm/train.sbatch", *short_run(tokens, tmp_path), "--train.stepps=1")
    assert job.state == "FAILED"
    assert job.exit_code != 0
    assert "stepps" in job.output
    assert time.monotonic() - begin < 60


def test_a_requeued_job_goes_on(cluster: Cluster, tokens: Path, tmp_path: Path) -> None:
    def checkpoints() -> set[str]:
        return {path.name for path in tmp_path.rglob("g0-step*.h5")}

    endless = [*short_run(tokens, tmp_path), "--train.steps=1000000", "--checkpoint.interval=10"]
    number = cluster.submit("--ntasks=4", "slurm/train.sbatch", *endless)
    try:
        before = cluster.wait_for(number, checkpoints)
        cluster.slurm("scontrol", "requeue", number)
        cluster.wait_for(number, lambda: "SLURM_RESTART_COUNT=1" in cluster.output(number))
        last = max(checkpoints() | before)
        # Without --resume the run would refuse to begin in a folder that holds one.
        cluster.wait_for(number, lambda: max(checkpoints()) > last or "error:" in cluster.output(number))
        assert "error:" not in cluster.output(number).partition("SLURM_RESTART_COUNT=1")[2]
    finally:
        cluster.slurm("scancel", number)
        cluster.wait(number)


def test_the_wrong_pmi_is_an_error(cluster: Cluster, tokens: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hpcdistill", "train", *short_run(tokens, tmp_path / "run")]
    job = cluster.run("--ntasks=4", f"--wrap=srun --mpi=none --kill-on-bad-exit=1 {' '.join(command)}")
    assert job.state == "FAILED", job.output
    assert "PMI" in job.output
    assert not list(tmp_path.glob("run/metrics-*"))


def test_submitted_from_elsewhere(cluster: Cluster, tmp_path: Path) -> None:
    job = cluster.run(f"--chdir={tmp_path}", "slurm/train.sbatch", "configs/demo.toml", "--train.stepps=1")
    assert "stepps" in job.output, "--chdir moves the job, yet the repository is where sbatch was called"
