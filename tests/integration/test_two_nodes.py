"""Tests of the exchange and of gradients over TCP, on two virtual nodes of this machine."""

import re

import pytest

from two_nodes import on_two_nodes

WHO_IS_WHERE = """
import os, sys
from mpi4py import MPI
world = MPI.COMM_WORLD
node = world.Split_type(MPI.COMM_TYPE_SHARED)
places = world.gather((os.uname().nodename, node.size))
if places:
    print(places)
sys.exit(3)
"""

LIMIT_OF_THE_LINK = """
import subprocess
from mpi4py import MPI
found = subprocess.run(["tc", "qdisc", "show", "dev", "eth0"], capture_output=True, text=True).stdout.split()
limits = MPI.COMM_WORLD.gather(found[found.index("rate") + 1])
if limits:
    print(limits)
"""

pytestmark = pytest.mark.launch


def test_each_half_of_the_ranks_is_on_a_node_of_its_own_and_their_exit_status_comes_through() -> None:
    result = on_two_nodes("-c", WHO_IS_WHERE)
    assert result.returncode == 3, result.stderr
    assert str([("node-a", 2), ("node-a", 2), ("node-b", 2), ("node-b", 2)]) in result.stdout


def test_both_directions_of_the_link_have_the_rate_asked_for() -> None:
    result = on_two_nodes("-c", LIMIT_OF_THE_LINK, options=("--rate", "20mbit"))
    assert result.returncode == 0, result.stderr
    assert str(["20Mbit"] * 4) in result.stdout


def test_the_exchange_works_between_nodes() -> None:
    # Not the tests that leave their windows behind: over those, MPI_Finalize may fail between nodes.
    selected = ["tests/exchange/window/test_exchange.py", "-k", "not after_an_exception"]
    result = on_two_nodes("-m", "pytest", "-q", *selected, "-p", "no:cacheprovider")
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    assert re.search(r"\d+ passed", result.stdout), result.stdout


def test_gradients_are_averaged_between_nodes_without_horovod() -> None:
    """Check that no rank waits for a message of MPI from one that waits for it elsewhere."""
    selected = ["tests/distributed/test_torch_ddp.py", "-k", "own_statistics"]
    result = on_two_nodes("-m", "pytest", "-q", *selected, "-p", "no:cacheprovider")
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    assert "2 passed" in result.stdout
