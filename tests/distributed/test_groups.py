"""Groups without a launcher, errors of the launch, and gradients of micro-batches."""

import subprocess
import sys
from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

pytestmark = pytest.mark.launch

Run = Callable[..., CompletedProcess[str]]

SINGLE = """
import sys
import torch
from hpcdistill import Groups

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in sys.argv[1:]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
groups = Groups.create(2)
model = torch.nn.Linear(2, 2)
optimizer = torch.optim.SGD(model.parameters())
assert groups.distribute(model, optimizer) == (model, optimizer)
assert (groups.count, groups.group, groups.rank, groups.size, groups.peers) == (1, 0, 0, 1, [])
assert groups.is_leader and groups.sum(3) == 3 and groups.from_leader(lambda: 4) == 4
groups.require_same("it", "it")
groups.world.Barrier()
assert not {"mpi4py.MPI", "horovod"} & sys.modules.keys()
"""


@pytest.mark.parametrize("blocked", [[], ["mpi4py", "horovod"]])
def test_a_process_without_a_launcher_is_one_group(blocked: list[str]) -> None:
    result = subprocess.run([sys.executable, "-c", SINGLE, *blocked], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "no launcher started this process, so it trains one model without peers instead of 2" in result.stderr


CREATES = "from hpcdistill import Groups; print(Groups.create(2))"


def test_one_rank_of_a_launcher_is_too_few(mpirun: Run) -> None:
    result = mpirun(1, "-c", CREATES, timeout=60)
    assert result.returncode != 0
    assert "1 ranks cannot be split evenly into groups = 2" in result.stderr
    assert "Traceback" not in result.stderr


def test_tasks_of_srun_that_mpi_does_not_join_are_an_error() -> None:
    command = ["env", "SLURM_STEP_NUM_TASKS=2", sys.executable, "-c", CREATES]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode != 0
    assert "srun started 2 tasks but each sees an MPI world of one rank" in result.stderr
    assert "Traceback" not in result.stderr


ONE_RAISES = """
from hpcdistill import Groups
groups = Groups.create(2)
if groups.world.rank == 1:
    raise RuntimeError("lightning")
groups.world.Barrier()
"""


def test_an_exception_on_one_rank_ends_all(mpirun: Run) -> None:
    result = mpirun(2, "-c", ONE_RAISES, timeout=60)
    assert result.returncode != 0
    assert "[world rank 1 of 2] Traceback" in result.stderr
    assert "RuntimeError: lightning" in result.stderr


ACCUMULATES = """
import torch
from hpcdistill import Groups

groups = Groups.create(1)
torch.manual_seed(groups.rank)
model = torch.nn.Linear(3, 2)
start = torch.nn.Linear(3, 2)
model, optimizer = groups.distribute(model, torch.optim.SGD(model.parameters(), lr=1.0), micro_batches=3)
start.load_state_dict(model.state_dict())
assert len(set(groups.comm.allgather(tuple(model.weight.flatten().tolist())))) == 1  # the leader's
inputs = torch.randn(2, 3, 4, 3, generator=torch.Generator().manual_seed(0))  # step, micro-batch, rank, feature
for step in inputs:
    for micro_batch in step:
        model(micro_batch[groups.rank]).sum().div(3).backward()
    optimizer.step()
    optimizer.zero_grad()
expected = start.weight - inputs[:, :, :groups.size].mean((1, 2)).sum(0)
torch.testing.assert_close(model.weight, expected.expand(2, 3))
"""


def test_gradients_of_micro_batches_are_averaged_over_the_group(mpirun: Run) -> None:
    result = mpirun(2, "-c", ACCUMULATES, timeout=60)
    assert result.returncode == 0, result.stderr
