"""Fake machine on which tools/setup.sh runs: its commands record how they were called, and install nothing."""

import shutil
import stat
import subprocess
import sys
from pathlib import Path

from repository import ROOT

# Environments and pip are fake; code runs in a real Python, which finds no packages but fake ones.
PYTHON = """#!/bin/bash
case "$1 $2" in
  "-m venv")
    mkdir -p "${@: -1}/bin" "${@: -1}/lib/python3.11/site-packages"
    cp "$0" "${@: -1}/bin/python"
    touch "${@: -1}/bin/activate"
    ;;
  "-m pip")
    while [[ $1 == -* || $1 == pip ]]; do shift; done
    if [ ! -t 0 ] && [[ " $* " == *" /dev/stdin "* ]]; then cat >/dev/null; fi
    echo "$*" >>"$FAKE_SITE/pip"
    if [ "$1" = wheel ]; then
      env | grep -E '^(HOROVOD|CUDA|ROCM|MPI_HOME|CC|CXX)' >"$FAKE_SITE/build"
      folder=$(sed -E 's/.*--wheel-dir ([^ ]*) .*/\\1/' <<<"$*")
      readlink "$folder/libnccl.so" >"$FAKE_SITE/nccl"
      touch "$folder/horovod-0-py3.whl"
    fi
    ;;
  "-c "*) PYTHONPATH=$FAKE_SITE/packages${PYTHONPATH:+:$PYTHONPATH} exec %s -S "$@" ;;
  "-V ") echo fake ;;
esac
"""
NVCC = """#!/bin/sh
case $1 in
  --dryrun) echo '#$ TOP=%s/bin/..' >&2 ;;
  --version) echo 'Cuda compilation tools, release %s, V0' ;;
esac
"""
MPI = """
def get_vendor():
    return "MPICH", (5, 0, 2)
"""


class FakeSite:
    """Copy of the repository's set-up in a folder, with a `PATH` of fake commands before those of the system."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repository = folder / "repository"
        self.bin = folder / "bin"
        shutil.copytree(ROOT / "tools", self.repository / "tools")
        for name in ("requirements.lock", "pyproject.toml", "setup.py", "CMakeLists.txt"):
            shutil.copy(ROOT / name, self.repository)
        (self.repository / "kernels").mkdir()
        shutil.copytree(ROOT / "slurm", self.repository / "slurm")
        self.command("python3", PYTHON % sys.executable)
        for name in ("nvidia-smi", "rocminfo", "sbatch", "sinfo"):
            self.command(name, "#!/bin/sh\nexit 127\n")
        self.package("mpi4py/__init__.py", "class rc: initialize = True")
        self.package("mpi4py/MPI.py", MPI)
        self.torch()

    def command(self, name: str, script: str) -> None:
        """Put a command on PATH."""
        path = self.bin / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(script)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def package(self, path: str, text: str, folder: str = "packages") -> None:
        """Write a file of a fake package of Python."""
        file = self.folder / folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def torch(self, version: str = "2.13.0+cpu", cuda: str | None = None, hip: str | None = None) -> None:
        """Choose the torch that pip installs."""
        self.package("torch/__init__.py", f"from torch import version\n__version__ = {version!r}")
        self.package("torch/version.py", f"cuda, hip = {cuda!r}, {hip!r}")

    def cuda(self, version: str = "13.0", nccl: bool = True) -> None:
        """Install a CUDA toolkit, whose nvcc on PATH is not in its folder, and torch with pip's NCCL."""
        self.torch(f"2.13.0+cu{version.replace('.', '')}", cuda=version)
        (self.folder / "cuda" / "bin").mkdir(parents=True)
        self.command("nvcc", NVCC % (self.folder / "cuda", version))
        if nccl:
            self.package("nvidia/nccl/__init__.py", "")
            self.nccl("packages/nvidia/nccl")

    def nccl(self, folder: str, version: tuple[int, int, int] = (2, 29, 7)) -> None:
        """Write the files of an NCCL that the set-up looks at."""
        self.package("lib/libnccl.so.2", "", folder)
        lines = [f"#define NCCL_{name} {n}\n" for name, n in zip(("MAJOR", "MINOR", "PATCH"), version, strict=True)]
        self.package("include/nccl.h", "".join(lines), folder)

    def set_up(self, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run the set-up with these variables; forget what earlier ones have recorded."""
        for name in ("pip", "build", "nccl"):
            (self.folder / name).unlink(missing_ok=True)
        environment = {
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "HOME": str(self.folder),
            "FAKE_SITE": str(self.folder),
            "https_proxy": "http://127.0.0.1:9",  # no index can be reached
        }
        command = [str(self.repository / "tools" / "setup.sh")]
        return subprocess.run(command, env=environment | variables, capture_output=True, text=True, timeout=200)

    @property
    def pip(self) -> list[str]:
        """Arguments of each call of pip in the last set-up."""
        path = self.folder / "pip"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def build(self) -> dict[str, str]:
        """Variables that the last set-up gave to the build of Horovod; empty if it built none."""
        path = self.folder / "build"
        lines = path.read_text().splitlines() if path.exists() else []
        return dict(line.split("=", 1) for line in lines)

    @property
    def wheels(self) -> list[str]:
        """Names of the folders in the cache of Horovod's wheels."""
        return sorted(path.name for path in (self.folder / ".cache/hpcdistill/wheels").iterdir())
