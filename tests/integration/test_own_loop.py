"""A plain training loop codistils after a few changed lines, with ranks and without."""

import difflib
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from hpcdistill import Codistillation, Groups, codistillation_loss, linear_codistillation_loss
from repository import ROOT

pytestmark = pytest.mark.launch

Run = Callable[..., CompletedProcess[str]]

PAGE = (ROOT / "docs/own_loop.md").read_text()
PLAIN, OWN = "examples/plain_loop.py", "examples/own_loop.py"


def code(path: str) -> list[str]:
    """Return the lines after the docstring, without indentation and empty lines."""
    lines = (ROOT / path).read_text().split('"""', 2)[2].splitlines()
    return [line.strip() for line in lines if line.strip()]


def stripped(diff: str) -> list[str]:
    """Return the changed lines of a diff in order, without indentation and empty lines."""
    lines = [(line[0], line[1:].strip()) for line in diff.splitlines() if line[:1] in ("+", "-")]
    return sorted(f"{sign} {text}" for sign, text in lines if text)


def test_six_lines_and_an_import_are_enough() -> None:
    changes = [line for line in difflib.ndiff(code(PLAIN), code(OWN)) if line[0] in "+-"]
    for page in (PAGE, (ROOT / "README.md").read_text()):
        (shown,) = re.findall(r"^```diff\n(.*?)^```$", page, re.M | re.S)
        assert stripped(shown) == sorted(changes)
    added = [line for line in changes if line.startswith("+ ")]
    assert sum("import" in line for line in added) == 1
    assert len(added) - 1 <= 6
    assert len(changes) - len(added) <= len(added)


class Model(nn.Module):
    """A trunk and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = nn.Linear(4, 8), nn.Linear(8, 3, bias=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.trunk(inputs))


def names() -> dict[str, Any]:
    """Return the names that the page's Python uses, for a process without peers."""
    model, groups = Model(), Groups.single()
    inputs, target = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])

    def gpt(**batch: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=model(batch["input_ids"] * batch["attention_mask"]))

    return {
        "math": math,
        "torch": torch,
        "Codistillation": Codistillation,
        "codistillation_loss": codistillation_loss,
        "linear_codistillation_loss": linear_codistillation_loss,
        "cross_entropy": cross_entropy,
        "groups": groups,
        "model": model,
        "trained": Model(),
        "gpt": gpt,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "peers": Codistillation(model, groups),
        "loader": [(inputs, target)] * 8,
        "inputs": inputs,
        "tokens": inputs,
        "mask": torch.ones(()),
        "target": target,
    }


@pytest.mark.parametrize("block", re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S))
def test_the_page_s_python_works(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    space = names()
    before = space["model"].head.weight.detach().clone()
    exec(block, space)
    if "optimizer.step()" in block:
        assert not torch.equal(space["model"].head.weight, before)
    elif "loss = " in block:
        space["loss"].backward()
        assert space["model"].head.weight.grad.norm() > 0
    if "trained" in block:
        (teacher,) = space["teachers"]
        assert torch.equal(teacher, space["trained"](space["inputs"]))


def losses(output: str) -> list[float]:
    return [float(loss) for loss in re.findall(r"step \d+: loss ([\d.]+)", output)]


def test_the_example_learns(mpirun: Run) -> None:
    result = mpirun(4, OWN, env={"HPCDISTILL_DEBUG": "1"})
    assert result.returncode == 0, result.stderr
    for group in (0, 1):
        assert re.search(rf"group {group}: adopted step \d+ of group {1 - group} after \d+ steps", result.stderr)
    assert len(losses(result.stdout)) == 16
    assert losses(result.stdout)[-1] < losses(result.stdout)[0] < 2.3  # ln 10 is that of a constant prediction


def test_the_example_runs_without_a_launcher() -> None:
    """Check that it prints the same losses as the plain loop."""
    results = [
        subprocess.run([sys.executable, path], cwd=ROOT, capture_output=True, text=True, timeout=200)
        for path in (PLAIN, OWN)
    ]
    assert [result.returncode for result in results] == [0, 0], results
    assert results[0].stdout == results[1].stdout
    assert "so it trains one model without peers instead of 2" in results[1].stderr


COMPILED = """
import torch
from torch import nn
from hpcdistill import Codistillation, Groups, codistillation_loss

groups = Groups.create(2)
torch.manual_seed(groups.world.rank)
model = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
compiled = torch.compile(model, backend="eager")
optimizer = torch.optim.SGD(compiled.parameters(), lr=0.1)
compiled, optimizer = groups.distribute(compiled, optimizer, micro_batches=2)
taught, first, last = 0, None, None
with Codistillation(compiled, groups, interval=5, burn_in=10) as peers:
    step = 0
    while groups.world.allreduce(not taught) or step < 100:  # until every rank has had a teacher
        for _ in range(2):
            inputs = torch.randn(32, 4)
            target = inputs[:, :3].argmax(1)
            teachers = peers.predict(inputs)
            loss = codistillation_loss(compiled(inputs), target, teachers, distill_weight=peers.weight)
            loss.div(2).backward()
        optimizer.step()
        optimizer.zero_grad()
        peers.step()
        step += 1
        taught += len(teachers)
        first, last = first or loss.item(), loss.item()
weights = groups.comm.allgather(model[0].weight.flatten().tolist())
outcome = "the same" if weights[0] == weights[1] else "apart", "learned" if last < first else "not learned"
print(" ".join(outcome), flush=True)  # at once: ranks share the pipe
"""


def test_horovod_a_compiled_model_and_micro_batches_go_together(mpirun: Run) -> None:
    result = mpirun(4, "-W", "error", "-c", COMPILED)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("the same learned") == 4


ONE_RAISES = """
import torch
from hpcdistill import Codistillation, Groups
groups = Groups.create(2)
with Codistillation(torch.nn.Linear(2, 2), groups, interval=1, burn_in=0) as peers:
    for step in range(10**6):
        peers.step()
        if groups.world.rank == 3 and step == 50:
            raise RuntimeError("lightning")
        groups.comm.Barrier()
"""


def test_an_exception_on_one_rank_ends_all(mpirun: Run) -> None:
    result = mpirun(4, "-c", ONE_RAISES)
    assert result.returncode != 0
    assert "[world rank 3 of 4] Traceback" in result.stderr
    assert "RuntimeError: lightning" in result.stderr


DIFFERENT = """
import torch
from hpcdistill import Codistillation, Groups
groups = Groups.create(2)
with Codistillation(torch.nn.Linear(2, 2 + groups.group), groups):
    pass
"""


def test_models_that_differ_end_all_ranks_with_a_message(mpirun: Run) -> None:
    result = mpirun(4, "-c", DIFFERENT)
    assert result.returncode != 0
    assert "weight [3, 2] float32 there, weight [2, 2] float32 here" in result.stderr
    assert "Traceback" not in result.stderr
