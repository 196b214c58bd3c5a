"""The gradient backend of docs/extension.md works as it stands there."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from mpi4py import MPI
from torch import nn

from hpcdistill.distributed import gradients
from hpcdistill.distributed.groups import Groups
from linear_oracle import assert_matches_reference, random_linear_case
from repository import ROOT

WORLD = MPI.COMM_WORLD


@pytest.fixture(scope="module")
def group() -> Iterator[Groups]:
    """Run the page's snippet, and yield a group of all ranks that uses its backend."""
    if WORLD.size == 1:
        pytest.skip("ranks: one needs no backend")
    text = (ROOT / "docs" / "extension.md").read_text()
    snippet = text.split("\n## A gradient backend\n")[1].split("```python\n")[1].split("```")[0]
    exec(compile(snippet, "docs/extension.md", "exec"), {})
    yield Groups.from_world(1, gradients="plain")
    del gradients._starters["plain"]


def test_ranks_step_by_the_average_of_their_gradients(group: Groups) -> None:
    torch.manual_seed(group.rank)
    model = nn.Linear(3, 2)
    model, optimizer = group.distribute(model, torch.optim.SGD(model.parameters(), lr=0.5), micro_batches=2)
    inputs = torch.randn(2, group.size, 3, generator=torch.Generator().manual_seed(0))  # micro-batch, rank, feature
    expected = torch.tensor(group.comm.bcast(model.weight.tolist()))
    for is_clipped in (False, True):
        for micro_batch in inputs:
            model(micro_batch[group.rank]).sum().backward()
        if is_clipped:
            with group.averaged_gradients(optimizer):
                optimizer.step()
        else:
            optimizer.step()
        optimizer.zero_grad()
        expected -= 0.5 * inputs.sum(0).mean(0)
        torch.testing.assert_close(model.weight.detach(), expected)


def test_ranks_split_a_vocabulary(group: Groups) -> None:
    begin, end = (110 * rank // group.size for rank in (group.rank, group.rank + 1))
    case = replace(random_linear_case(rows=9), classes=slice(begin, end))
    assert_matches_reference(case, vocab_parallel=group.vocab_parallel(end - begin))
