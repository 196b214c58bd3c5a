"""Groups without a launcher, errors of the launch, and gradients that ranks average."""

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
with groups.averaged_gradients(optimizer):
    optimizer.step()
assert (groups.count, groups.group, groups.rank, groups.size, groups.peers) == (1, 0, 0, 1, [])
assert groups.is_leader and groups.sum(3) == 3 and groups.from_leader(lambda: 4) == 4
groups.require_same("it", "it")
groups.world.Barrier()
assert not {"mpi4py.MPI", "horovod"} & sys.modules.keys()
"""


@pytest.mark.parametrize("blocked", [[], ["mpi4py", "horovod"]])
def test_a_process_without_a_launcher_is_one_group(blocked: list[str]) -> None:
    result = subprocess.run([sys.executable, "-c", SINGLE, *blocked], capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    assert "no launcher started this process, so it trains one model without peers instead of 2" in result.stderr


CREATES = "from hpcdistill import Groups; print(Groups.create(2))"


def test_one_rank_of_a_launcher_is_too_few(mpirun: Run) -> None:
    result = mpirun(1, "-c", CREATES)
    assert result.returncode != 0
    assert "1 ranks cannot be split evenly into groups = 2" in result.stderr
    assert "Traceback" not in result.stderr


def test_tasks_of_srun_that_mpi_does_not_join_are_an_error() -> None:
    command = ["env", "SLURM_STEP_NUM_TASKS=2", sys.executable, "-c", CREATES]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200)
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
    result = mpirun(2, "-c", ONE_RAISES)
    assert result.returncode != 0
    assert "[world rank 1 of 2] Traceback" in result.stderr
    assert "RuntimeError: lightning" in result.stderr


AVERAGES = """
import sys
import torch
from torch.nn.utils import clip_grad_norm_
from hpcdistill import Groups

groups = Groups.create(1, gradients=sys.argv[1])
inputs = torch.randn(2, 3, 4, 3, generator=torch.Generator().manual_seed(0))  # step, micro-batch, rank, feature


def distributed(dtype):
    torch.manual_seed(groups.rank)
    model = torch.nn.Linear(3, 2, dtype=dtype)
    weight = model.weight
    model, optimizer = groups.distribute(model, torch.optim.SGD(model.parameters(), lr=1.0), micro_batches=3)
    assert len(set(groups.comm.allgather(tuple(weight.flatten().tolist())))) == 1  # the leader's
    return model, optimizer, weight


model, optimizer, weight = distributed(torch.float32)
start = weight.detach().clone()
for step in inputs:
    for micro_batch in step:
        model(micro_batch[groups.rank]).sum().div(3).backward()
    optimizer.step()
    optimizer.zero_grad()
expected = start - inputs[:, :, :groups.size].mean((1, 2)).sum(0)
torch.testing.assert_close(weight.detach(), expected.expand(2, 3))

for dtype in (torch.float32, torch.bfloat16):
    model, optimizer, weight = distributed(dtype)
    for step in inputs.to(dtype):  # the gradient of each row of the weight is the sum of the inputs
        before = weight.detach().clone()
        for micro_batch in step:
            model(micro_batch[groups.rank]).sum().backward()
        of_ranks = step[0] + step[1] + step[2]
        mean = of_ranks[:groups.size].float().mean(0).to(dtype).expand(2, 3)  # rounded once
        with groups.averaged_gradients(optimizer):
            assert torch.equal(weight.grad, mean)
            norm = clip_grad_norm_(model.parameters(), 0.25)
            optimizer.step()
        exact = (mean.float().square().sum() + 2 * 3**2).sqrt()  # with the bias, whose gradient is 3
        torch.testing.assert_close(norm, exact.to(dtype))
        torch.testing.assert_close(weight.detach(), before - mean * (0.25 / norm))
        optimizer.zero_grad()
    assert weight.dtype == dtype
"""


@pytest.mark.parametrize("gradients", ["horovod", "torch"])
def test_gradients_are_averaged_over_micro_batches_and_the_group_before_they_are_clipped(
    gradients: str, mpirun: Run
) -> None:
    """Check it in float32 and bfloat16; nothing warns that a step has averaged gradients a second time."""
    result = mpirun(2, "-W", "error", "-c", AVERAGES, gradients)
    assert result.returncode == 0, result.stderr
