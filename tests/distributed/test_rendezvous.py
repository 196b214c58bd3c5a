"""The address at which ranks without MPI meet, from the variables of their launcher."""

import os

import pytest

from hpcdistill.distributed.launch import is_first_rank, was_launched
from hpcdistill.distributed.rendezvous import Rendezvous, _first_node, of_srun, of_torchrun
from launcher import LAUNCHER_VARIABLES

pytestmark = pytest.mark.alone

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "n1", "MASTER_PORT": "29500", "LOCAL_RANK": "1"}
SRUN = {
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_STEP_NODELIST": "n[07-09,12],login1",
}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*os.environ]:
        if name.startswith((*LAUNCHER_VARIABLES, "SLURM_")) or name in TORCHRUN:
            monkeypatch.delenv(name)


def give(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_a_process_without_a_launcher_has_none() -> None:
    assert of_torchrun() is None
    assert of_srun() is None


def test_torchrun_gives_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, TORCHRUN)
    assert of_torchrun() == Rendezvous(3, 4, "n1:29500")
    assert was_launched()
    assert not is_first_rank()
    monkeypatch.setenv("SLURM_PROCID", "1")  # of the srun that has started torchrun on this node
    monkeypatch.setenv("RANK", "0")
    assert is_first_rank()


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_some_of_its_variables_are_not_enough(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, TORCHRUN)
    monkeypatch.delenv(name)
    assert of_torchrun() is None
    assert not was_launched()


def test_tasks_of_srun_meet_on_the_first_node(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, SRUN)
    assert of_srun() == Rendezvous(5, 8, f"n07:{15000 + (31 * 123456 + 2) % 15000}")
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS")  # as in a batch script, which is no task
    assert of_srun() is None


def test_a_given_address_takes_the_place_of_the_first_node(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, SRUN | {"MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "4711"})
    assert of_srun() == Rendezvous(5, 8, "10.0.0.7:4711")


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("a7,b[1-2]", "a7"),
        ("n[07-09,12],login1", "n07"),
        ("n[3,5-6]", "n3"),
        ("rack[2-3]-node[01-04].site", "rack2-node01.site"),
    ],
)
def test_the_first_node_of_a_list(nodes: str, first: str) -> None:
    assert _first_node(nodes) == first
