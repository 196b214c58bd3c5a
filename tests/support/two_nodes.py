"""Python on two virtual nodes of this machine, which communicate over TCP."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from launcher import LAUNCHER_VARIABLES
from repository import ROOT

CANNOT = 77


def on_two_nodes(*python_args: str, options: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run Python on four ranks, with `options` of the script.

    A timeout kills the script, and with it the nodes and all their processes.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHER_VARIABLES)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"  # mpirun's
    command = ["tools/two_nodes.sh", *options, "-n", "4", sys.executable, *python_args]
    result = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=200
    )
    if result.returncode == CANNOT:
        pytest.skip(f"TCP between nodes is NOT TESTED here: {result.stderr}")
    return result
