"""Checks that the integrations share, and what they say without their libraries."""

import runpy
import sys
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from hpcdistill import Groups
from hpcdistill.distributed.torch_communicator import TorchCommunicator
from hpcdistill.errors import UserError
from hpcdistill.integrations.checks import require_different, require_ranks_of_mpi
from repository import ROOT


def test_groups_with_the_same_value_are_refused(groups: Groups) -> None:
    require_different(groups, "seed", groups.group)
    with pytest.raises(UserError, match=r"seed = 7 is the same in groups 0 and 1; give each group its own"):
        require_different(groups, "seed", 7)


@pytest.fixture
def without_mpi() -> Iterator[Groups]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Groups.split(TorchCommunicator(dist.group.WORLD), (1,), torch.device("cpu"))
    dist.destroy_process_group()


@pytest.mark.alone
def test_ranks_without_mpi_are_refused(without_mpi: Groups) -> None:
    require_ranks_of_mpi(Groups.single())
    with pytest.raises(UserError, match="communicate without MPI, which the loops of other libraries cannot"):
        require_ranks_of_mpi(without_mpi)


@pytest.mark.alone
@pytest.mark.parametrize(("library", "extra"), [("transformers", "huggingface"), ("lightning", "lightning")])
def test_a_library_that_is_missing_is_named(library: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    for name in [name for name in sys.modules if name.startswith(f"{library}.")]:
        monkeypatch.delitem(sys.modules, name)
    message = rf"integrations\.{library} needs {library}[.a-z]*; pip install 'hpcdistill\[{extra}\]'"
    with pytest.raises(UserError, match=message):
        runpy.run_path(str(ROOT / f"hpcdistill/integrations/{library}.py"))
