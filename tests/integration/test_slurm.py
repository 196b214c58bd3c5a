"""Training under a real Slurm: time limits, cancellations, lost ranks and nodes, and submission from anywhere."""

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import venv
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from hpcdistill.storage.metrics import Record, read_metrics
from hpcdistill.storage.run_dir import RunDir
from hpcdistill.storage.state_file import load_state
from repository import ROOT
from slurm_cluster import Cluster, on_slurm
from torchrun import environment_without_mpi

pytestmark = on_slurm

PRINT_PLACES = """#!/usr/bin/env bash
. slurm/env.sh
"${LAUNCH[@]}" python -c '
import os
from mpi4py import MPI
print("rank", MPI.COMM_WORLD.rank, "of", MPI.COMM_WORLD.size, "on", os.uname().nodename, flush=True)'
"""


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


def short_run(tokens: Path, run_dir: Path, *more: str) -> list[str]:
    return [
        "configs/demo.toml",
        f"--run_dir={run_dir}",
        f"--data.path={tokens}",
        "--data.batch_size=12",
        "--data.sequence_length=16",
        "--model.hidden=16",
        "--codistill.burn_in=10",
        "--codistill.exchange_interval=5",
        "--train.steps=30",
        "--train.validate_every=10",
        *more,
    ]


def history(run_dir: Path, group: int) -> tuple[Record, list[Record]]:
    """Return the header and the records with losses, after checking that each step is in exactly one record."""
    header, records = read_metrics(RunDir(run_dir).metrics(group))
    losses = [record for record in records if "loss" in record]
    assert [record["step"] - record["steps"] for record in losses[1:]] == [record["step"] for record in losses[:-1]]
    assert not losses or losses[0]["step"] == losses[0]["steps"]
    return header, losses


def last_step(run_dir: Path, group: int) -> int:
    _, losses = history(run_dir, group)
    return int(losses[-1]["step"]) if losses else 0


class Stopwatch:
    """Printer of elapsed times: pytest -rP tests/integration/test_slurm.py | grep measured:"""

    def __init__(self) -> None:
        self._begin = time.monotonic()

    def print(self, what: str) -> None:
        print(f"measured: {time.monotonic() - self._begin:5.1f} s {what}")


def wait_for_step(step: int, cluster: Cluster, number: str, run_dir: Path) -> None:
    """Wait until both groups have made this step."""
    cluster.wait_for(number, lambda: min(last_step(run_dir, 0), last_step(run_dir, 1)) >= step)


def test_one_world_over_two_nodes(cluster: Cluster) -> None:
    script = cluster.folder / "print_places.sbatch"
    script.write_text(PRINT_PLACES)
    job = cluster.run("--ntasks=4", script)
    assert job.state == "COMPLETED", job.output
    lines = re.findall(r"rank (\d) of (\d) on (\w+)", job.output)
    assert sorted(rank for rank, _, _ in lines) == ["0", "1", "2", "3"]
    assert {size for _, size, _ in lines} == {"4"}
    assert {node for _, _, node in lines} == {"node1", "node2"}


# Two nodes, with two and four ranks, are those of `test_time_is_up_and_the_run_goes_on`.
@pytest.mark.parametrize(("launcher", "nodes", "ranks"), [("srun", 4, 4), ("mpirun", 1, 2)])
def test_the_main_job(
    launcher: str, nodes: int, ranks: int, cluster: Cluster, tokens: Path, mpirun_site: Path, tmp_path: Path
) -> None:
    site = {"srun": ROOT, "mpirun": mpirun_site}[launcher]
    options = (f"--nodes={nodes}", f"--ntasks={ranks}")
    job = cluster.run(*options, "slurm/train.sbatch", *short_run(tokens, tmp_path / "run"), submit_dir=site)
    assert (job.state, job.exit_code) == ("COMPLETED", 0), job.output
    assert re.search(rf"on node1?(\[1-{nodes}\])?, {ranks} ranks, SLURM_RESTART_COUNT=0", job.output), job.output
    for group in (0, 1):
        assert last_step(tmp_path / "run", group) == 30


def test_the_main_job_where_neither_mpi_nor_horovod_is_installed(
    cluster: Cluster, tokens: Path, tmp_path: Path
) -> None:
    path = environment_without_mpi(tmp_path)["PYTHONPATH"]
    options = short_run(tokens, tmp_path / "run", "--exchange.transport=files", "--gradients=torch")
    job = cluster.run("--ntasks=4", f"--export=ALL,PYTHONPATH={path}", "slurm/train.sbatch", *options)
    assert (job.state, job.exit_code) == ("COMPLETED", 0), job.output
    assert "mpi4py finds no MPI, so ranks start without it" in job.output
    for group in (0, 1):
        assert last_step(tmp_path / "run", group) == 30


def test_a_failing_run_fails_the_job(cluster: Cluster, tokens: Path, tmp_path: Path) -> None:
    watch = Stopwatch()
    command = ("slurm/train.sbatch", *short_run(tokens, tmp_path, "--train.stepps=1"))
    job = cluster.run("--ntasks=4", f"--chdir={tmp_path}", *command)
    assert job.state == "FAILED"
    assert job.exit_code != 0
    assert "stepps" in job.output, "--chdir moves the job, yet its folder is the one where sbatch was called"
    watch.print("from sbatch until a mistake in the options has ended the job")


@pytest.mark.parametrize(("launcher", "ranks"), [("srun", 4), ("mpirun", 2)])
def test_time_is_up_and_the_run_goes_on(
    launcher: str, ranks: int, cluster: Cluster, tokens: Path, mpirun_site: Path, tmp_path: Path
) -> None:
    site = {"srun": ROOT, "mpirun": mpirun_site}[launcher]
    config = tmp_path / "run.toml"

    def set_steps(steps: int) -> None:
        demo = (ROOT / "configs/demo.toml").read_text()
        config.write_text(demo.replace("steps = 2300", f"steps = {steps}"))

    set_steps(1_000_000)  # so that no run ends before the signal, however fast the machine
    _, *options = short_run(tokens, tmp_path, "--checkpoint.interval=1000000")
    options.remove("--train.steps=30")
    number = cluster.submit(f"--ntasks={ranks}", "slurm/train.sbatch", config, *options, submit_dir=site)
    try:
        wait_for_step(100, cluster, number, tmp_path)
        watch = Stopwatch()
        cluster.slurm("scancel", "--batch", "--signal=USR2", number)
        cluster.wait_for(number, lambda: f"requeueing job {number}" in cluster.output(number))
        watch.print(f"from SIGUSR2 until the checkpoint is written and the requeue asked for ({launcher})")
        before = [last_step(tmp_path, group) for group in (0, 1)]
        set_steps(steps := max(before) + 100)
        wait_for_step(min(before) + 1, cluster, number, tmp_path)
        watch.print(f"from SIGUSR2 until training goes on ({launcher})")
        job = cluster.wait(number)
    finally:
        cluster.slurm("scancel", number)
    assert (job.state, job.exit_code) == ("COMPLETED", 0), job.output
    assert job.output.count(f"requeueing job {number}") == 1
    assert "SLURM_RESTART_COUNT=1" in job.output
    for group in (0, 1):
        header, losses = history(tmp_path, group)
        assert losses[-1]["step"] == steps
        assert [start.get("slurm_restart_count", 0) for start in header["starts"]] == [0, 1]
        assert 100 <= header["starts"][1]["step"] < steps


def test_scancel_leaves_a_checkpoint(cluster: Cluster, tokens: Path, tmp_path: Path) -> None:
    run = short_run(tokens, tmp_path, "--train.steps=1000000", "--checkpoint.interval=1000000")
    number = cluster.submit("--ntasks=2", "slurm/train.sbatch", *run)
    try:
        wait_for_step(20, cluster, number, tmp_path)
    finally:
        watch = Stopwatch()
        cluster.slurm("scancel", number)
    job = cluster.wait(number)
    watch.print("from scancel until the job has ended, with checkpoints")
    assert job.state == "CANCELLED"
    for group in (0, 1):
        (checkpoint,) = tmp_path.glob(f"checkpoints/g{group}-step*.h5")
        assert load_state(checkpoint, "checkpoint")["state"]["step"] == last_step(tmp_path, group)


def test_a_killed_rank_ends_the_job_and_a_requeue_goes_on(cluster: Cluster, tokens: Path, tmp_path: Path) -> None:
    run = short_run(tokens, tmp_path, "--train.steps=1000000", "--checkpoint.interval=50")
    number = cluster.submit("--ntasks=2", "slurm/train.sbatch", *run)
    try:
        wait_for_step(100, cluster, number, tmp_path)
        ranks = subprocess.run(["pgrep", "-f", f"^[^ ]*python .*run_dir={tmp_path}"], capture_output=True, text=True)
        os.kill(int(ranks.stdout.split()[-1]), signal.SIGKILL)
        watch = Stopwatch()
        assert cluster.wait(number).state == "FAILED"
        watch.print("from SIGKILL of one rank until the job has ended")
        watch = Stopwatch()
        cluster.slurm("scontrol", "requeue", number)
        before = last_step(tmp_path, 0)
        cluster.wait_for(number, lambda: len(history(tmp_path, 0)[0]["starts"]) == 2)
        cluster.wait_for(number, lambda: last_step(tmp_path, 0) > before)
        watch.print("from scontrol requeue until it has made up for the steps lost")
        assert history(tmp_path, 0)[0]["starts"][1]["step"] >= 50
    finally:
        cluster.slurm("scancel", number)
        cluster.wait(number)


def test_an_array_of_groups_outlives_a_node(cluster: Cluster, tokens: Path, tmp_path: Path) -> None:
    """The other groups lose no step and still teach each other; the lost group resumes, teaches and learns."""
    options = ("--groups=3", "--train.steps=1000000", "--checkpoint.interval=50", "--codistill.max_staleness=400")
    command = [sys.executable, "-m", "hpcdistill", "submit", *short_run(tokens, tmp_path, *options)]
    said = cluster.slurm(*command, f"--sbatch=--exclusive --output={cluster.folder}/job-%A_%a.out")
    array = re.search(r"submitted 3 groups as job array (\d+)", said)[1]  # type: ignore[index]

    def newest(group: int) -> list[Record]:
        return history(tmp_path, group)[1][-1:]

    def quarantines(groups: tuple[int, ...], of: set[str]) -> bool:
        return all(record["quarantine"].keys() == of for group in groups for record in newest(group))

    try:
        cluster.wait_for(f"{array}_0", lambda: min(last_step(tmp_path, group) for group in range(3)) >= 100)
        node = cluster.node_of(f"{array}_2")
        cluster.kill_node(node)
        watch = Stopwatch()
        cluster.wait_for(f"{array}_0", lambda: quarantines((0, 1), {"2"}))
        watch.print("from a node's power cut until the other groups have given up its group")
        cluster.wait_for(f"{array}_0", lambda: len(history(tmp_path, 2)[0]["starts"]) == 2)
        watch.print("from a node's power cut until its group trains elsewhere")
        again = history(tmp_path, 2)[0]["starts"][1]
        assert again["step"] >= 50
        assert again["slurm_restart_count"] == 1
        cluster.wait_for(f"{array}_0", lambda: quarantines((0, 1, 2), set()))
        cluster.wait_for(f"{array}_0", lambda: newest(2)[0]["staleness"].keys() == {"0", "1"})
        watch.print("from a node's power cut until all groups teach each other again")
        assert [len(history(tmp_path, group)[0]["starts"]) for group in range(3)] == [1, 1, 2]
        pauses = [b["seconds"] - a["seconds"] for group in (0, 1) for a, b in pairwise(history(tmp_path, group)[1])]
        print(f"measured: {max(pauses):5.1f} s at most between two records of the other groups")
    finally:
        cluster.slurm("scancel", array)
        cluster.boot_node(node)


def test_the_wrong_pmi_is_an_error(cluster: Cluster, tokens: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hpcdistill", "train", *short_run(tokens, tmp_path / "run")]
    watch = Stopwatch()
    job = cluster.run("--ntasks=4", f"--wrap=srun --mpi=none --kill-on-bad-exit=1 {' '.join(command)}")
    watch.print("from sbatch until the wrong PMI has ended the job")
    assert job.state == "FAILED", job.output
    assert "PMI" in job.output
    assert not list(tmp_path.glob("run/metrics-*"))


def test_a_job_from_any_folder_without_environment_resumes_as_asked(
    cluster: Cluster, tokens: Path, tmp_path: Path
) -> None:
    """Paths are relative to that folder, and a requeue keeps --resume=strict."""
    shutil.copy(ROOT / "configs/demo.toml", tmp_path / "run.toml")
    _, *options = short_run(tokens, Path("run"), "--resume=strict")
    script = ROOT / "slurm" / "train.sbatch"
    number = cluster.submit("--export=NONE", "--ntasks=2", script, "run.toml", *options, submit_dir=tmp_path)
    try:
        job = cluster.wait(number)
        assert job.state == "COMPLETED", job.output
        assert last_step(tmp_path / "run", 1) == 30
        newest = tmp_path / "run" / "checkpoints" / "g0-step0000000030.h5"
        newest.write_bytes(newest.read_bytes()[:-1])
        cluster.slurm("scontrol", "requeue", number)
        job = cluster.wait(number)
        assert job.state == "FAILED", job.output
        assert "SLURM_RESTART_COUNT=1" in job.output
        assert "--resume=strict: checkpoint" in job.output
    finally:
        cluster.slurm("scancel", number)


def test_submit_from_an_installed_package(cluster: Cluster, tokens: Path, tmp_path: Path) -> None:
    """Jobs find the scripts and the Python of the package, also with an empty environment, and a recipe by its name."""
    venv.create(tmp_path / "venv", symlinks=True)
    (site,) = (tmp_path / "venv" / "lib").glob("*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))
    for library in Path(sys.prefix, "lib").glob("*mpi*"):  # where mpi4py looks for the library of a wheel
        (tmp_path / "venv" / "lib" / library.name).symlink_to(library)
    shutil.copytree(ROOT / "hpcdistill", site / "hpcdistill")
    with (site / "hpcdistill" / "slurm" / "env.sh").open("a") as script:
        script.write("command -v python\n")
    (tmp_path / "here").mkdir()
    python = tmp_path / "venv" / "bin" / "python"
    _, *options = short_run(tokens, Path("run"), f"--sbatch=--output={cluster.folder}/job-%A_%a.out")
    environment = cluster.environment | {"SBATCH_EXPORT": "NONE"}
    environment.pop("PYTHONPATH", None)  # this repository
    said = replace(cluster, environment=environment).slurm(
        python, "-m", "hpcdistill", "submit", "demo", *options, cwd=tmp_path / "here"
    )
    array = re.search(r"submitted 2 groups as job array (\d+)", said)[1]  # type: ignore[index]
    try:
        for group in (0, 1):
            job = cluster.wait(f"{array}_{group}")
            assert job.state == "COMPLETED", job.output
            assert f"{python}\n" in job.output
            assert job.output.count(f"using the recipe {site}/hpcdistill/configs/demo.toml") == 1
            assert last_step(tmp_path / "here" / "run", group) == 30
    finally:
        cluster.slurm("scancel", array)
