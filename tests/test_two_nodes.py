"""The exchange between nodes: its own tests over TCP, on two virtual nodes of this machine."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import LAUNCHER_VARIABLES

ROOT = Path(__file__).parents[1]
CANNOT = 77

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

pytestmark = pytest.mark.launch


def on_two_nodes(*python_args: str) -> subprocess.CompletedProcess[str]:
    """Python on four ranks; with the script, which a timeout kills, goes all that it has started."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHER_VARIABLES)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"  # mpirun's
    command = ["tools/two_nodes.sh", "-n", "4", sys.executable, *python_args]
    result = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=100
    )
    if result.returncode == CANNOT:
        pytest.skip(f"TCP between nodes is NOT TESTED here: {result.stderr}")
    return result


def test_each_half_of_the_ranks_is_on_a_node_of_its_own_and_their_exit_status_comes_through() -> None:
    result = on_two_nodes("-c", WHO_IS_WHERE)
    assert result.returncode == 3, result.stderr
    assert str([("node-a", 2), ("node-a", 2), ("node-b", 2), ("node-b", 2)]) in result.stdout


def test_the_exchange_works_between_nodes() -> None:
    # Not the tests that leave their windows behind: over those, MPI_Finalize may fail between nodes.
    selected = ["tests/test_window.py", "-k", "not after_an_exception"]
    result = on_two_nodes("-m", "pytest", "-q", *selected, "-p", "no:cacheprovider")
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    assert re.search(r"\d+ passed", result.stdout), result.stdout
