"""Codistillation where neither MPI nor Horovod can be had: torch.distributed inside groups, files between them."""

import os
import re
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from hpcdistill.storage.metrics import read_metrics
from hpcdistill.storage.run_dir import RunDir
from repository import ROOT
from small_run import SMALL, wait_until
from torchrun import TORCHRUN, environment_without_mpi, started

pytestmark = pytest.mark.launch


@pytest.fixture
def without_mpi(tmp_path: Path) -> dict[str, str]:
    """Return the environment of processes that have neither MPI nor Horovod."""
    folder = tmp_path / "blocked"
    folder.mkdir()
    return environment_without_mpi(folder)


def taught_steps(run: Path, group: int) -> list[int]:
    """Return the steps in which the other group taught, which are in the metrics so far."""
    path = RunDir(run).metrics(group)
    records = read_metrics(path)[1] if path.exists() else []
    return [record["step"] for record in records if record.get("staleness", {}).keys() == {str(1 - group)}]


def test_groups_teach_each_other_stop_and_continue(data: Path, tmp_path: Path, without_mpi: dict[str, str]) -> None:
    run, config = tmp_path / "run", tmp_path / "small.toml"
    config.write_text(f'run_dir = "{run}"\ngroups = 2\n{SMALL}')
    command = [*TORCHRUN, "4", "-m", "hpcdistill", "train", config, f"--data.path={data}"]
    command += ["--exchange.transport=files", "--gradients=torch"]
    with started([*command, "--train.steps=1000000"], env=without_mpi) as process:
        wait_until(lambda: all(taught_steps(run, group) for group in (0, 1)) or process.poll() is not None)
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=200)
    assert "hpcdistill: stopped as asked, with checkpoints" in output, errors
    stopped = [read_metrics(RunDir(run).metrics(group))[1][-1]["step"] for group in (0, 1)]

    def are_taught_again() -> bool:
        return all(taught_steps(run, group)[-1] > stopped[group] for group in (0, 1))

    with started([*command, "--resume=strict", "--train.steps=1000000"], env=without_mpi) as process:
        wait_until(lambda: are_taught_again() or process.poll() is not None)
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=200)
    assert "hpcdistill: stopped as asked, with checkpoints" in output, errors
    assert are_taught_again()
    for group in (0, 1):
        header, records = read_metrics(RunDir(run).metrics(group))
        assert [start["step"] for start in header["starts"]] == [0, stopped[group]]
        assert header["ranks_per_group"] == 2
        made = [record["step"] for record in records if "loss" in record]
        assert made == sorted({*made, stopped[group]})  # none twice


def test_the_example_runs_under_torchrun(tmp_path: Path, without_mpi: dict[str, str]) -> None:
    """Its own 400 steps may end before files have been looked for: that is done every 0.2 s."""
    script = tmp_path / "longer.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT / 'examples')!r})\nfrom own_loop import main\nmain(4000)\n"
    )
    result = subprocess.run(
        [*TORCHRUN, "2", script],
        env=without_mpi | {"HPCDISTILL_DEBUG": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert result.returncode == 0, result.stderr
    for group in (0, 1):
        assert re.search(rf"group {group}: adopted step \d+ of group {1 - group} after \d+ steps", result.stderr)
    assert len(re.findall(r"step \d+: loss", result.stdout)) == 2 * 40


# In a world without MPI, of 3 ranks: all operations, what is refused, and an error on one rank.
TASK = """
import numpy as np
from hpcdistill import Codistillation, Groups
from hpcdistill.distributed.stop import StopRequest
from hpcdistill.errors import UserError
import torch

try:
    Groups.create(1, gradients="horovod")
except UserError as error:
    print("refused:", error)
groups = Groups.create(2, sizes=(1, 2))
world, rank = groups.world, groups.world.rank
assert (world.size, groups.comm.size, groups.group, groups.rank) == [(3, 1, 0, 0), (3, 2, 1, 0), (3, 2, 1, 1)][rank]
assert world.allgather(rank) == [0, 1, 2] and world.gather("abc"[rank]) == (None if rank else ["a", "b", "c"])
assert world.allreduce(rank + 1) == 6 and world.bcast(rank or "first") == "first" and groups.sum(1) == groups.size
values = np.full(3, rank)
pending, total = world.Ibcast(values), np.empty(3, np.int64)
votes = world.Iallreduce(np.full(3, rank + 1), total)
world.Barrier()
pending.Wait(), votes.Wait()
assert not values.any() and (total == 6).all()
stop = StopRequest()
stop._received = rank == 1
assert not stop.agreed(groups.comm) and stop.agreed(groups.comm) == (groups.group == 1)
assert stop.agreed_now(groups.comm) == (groups.group == 1)
try:
    Codistillation(torch.nn.Linear(2, 2), groups, transport="window")
except UserError as error:
    print("refused:", error)
if rank == 1:
    raise RuntimeError("lightning")
world.Barrier()
"""


def test_tasks_of_srun_work_together_and_end_together(tmp_path: Path, without_mpi: dict[str, str]) -> None:
    """Start them as srun does, but do not end those that are left when one has failed."""
    srun = {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": "3",
        "SLURM_STEP_NODELIST": "localhost",
    }
    with ExitStack() as stack:
        tasks = [
            stack.enter_context(
                started([sys.executable, "-c", TASK], env=without_mpi | srun | {"SLURM_PROCID": str(rank)})
            )
            for rank in range(3)
        ]
        ended = [(*task.communicate(timeout=200), task.returncode) for task in tasks]
    for output, errors, status in ended:
        assert status != 0
        assert "refused: gradients = horovod needs MPI, but these ranks work together without it" in output, errors
        assert "refused: exchange.transport = window needs MPI, but these ranks work together without it" in output
        assert output.count("set --exchange.transport=files --gradients=torch") == 2
    assert "[world rank 1 of 3] Traceback" in ended[1][1]
    assert "RuntimeError: lightning" in ended[1][1]
    for rank in (0, 2):
        assert f"[world rank {rank} of 3] hpcdistill: error: another rank of this job has ended" in ended[rank][1]
        assert "Traceback" not in ended[rank][1]
