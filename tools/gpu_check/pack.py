"""Packing: all that the check needs on a machine without network, in one folder."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from gpu_check.folder import Packed
from gpu_check.trainer import read_metrics, validation_losses

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 64 << 20
"""Largest size of the folder in bytes."""

LOCKED = (
    *("mpich", "mpi4py", "tqdm", "pytest-timeout"),
    *("pydantic", "pydantic-core", "pydantic-settings", "typing-inspection", "typing-extensions"),
    *("annotated-types", "python-dotenv"),
    *("cffi", "pycparser", "cloudpickle", "psutil", "pyyaml"),
)
"""Packages of requirements.lock that are carried: MPI, and what the trainer and Horovod need."""

PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")

CURVE_KEYS = (
    *("--groups=1", "--codistill.weight=0", "--model.name=transformer", "--model.hidden=64", "--optimizer.lr=0.001"),
    "--train.validation_items=64",
)
"""Training whose curve is carried: without dropout, and with a learning rate at which roundings do not grow."""

READ_ME = """# Check of hpcdistill on a GPU

Needs Python 3.12, torch and Triton for CUDA, numpy, h5py, pytest, hypothesis, nvcc, cmake; no network.

    bash run truth      # builds the kernels, compares them with the formula, runs tests and sanitizers
    bash run speed      # the table of speeds, beside the estimates
    bash run trainer    # two groups on one GPU, beside a CPU's curve

Each takes at most 9.5 minutes. `--results FOLDER` says where COMMAND.md, COMMAND.json and COMMAND.log go.
"""

RUN = """#!/usr/bin/env bash
# Run a command of the check: truth, speed or trainer; --help lists the options.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$here/project/tools exec "${PYTHON:-python3}" -m gpu_check "$@"
"""


def pack(folder: Path, with_packages: bool = True, curve_steps: int = 200) -> Packed:
    """Pack the tracked files of the project as they are now, and what they need; replace what was packed before.

    Args:
        folder: the folder, which is replaced.
        with_packages: False leaves out wheels and Horovod's source, for a machine that has them.
        curve_steps: steps of the training on this CPU; 0 for no curve.

    Raises:
        SystemExit: the folder is not one of ours, or would be too large.
    """
    if folder.exists() and any(folder.iterdir()) and not Packed(folder).manifest.exists():
        raise SystemExit(f"gpu_check: {folder} holds something else; name another --output, or remove it")
    packed = Packed(folder.with_name(f"{folder.name}.part"))  # until it is complete
    shutil.rmtree(packed.path, ignore_errors=True)
    copy_project(packed)
    if with_packages:
        download_packages(packed)
    make_store(packed)
    if curve_steps:
        train_on_cpu(packed, curve_steps)
    (packed.path / "README.md").write_text(READ_ME)
    (packed.path / "run").write_text(RUN)
    parts = {part.name: Packed(part).nbytes() for part in sorted(packed.path.iterdir()) if part.is_dir()}
    facts = {"commit": _git("describe", "--always", "--dirty").strip(), "time": time.time(), "bytes": parts}
    packed.manifest.write_text(json.dumps(facts, indent=1) + "\n")
    if packed.nbytes() > LIMIT:
        raise SystemExit(f"gpu_check: {folder} would have {packed.nbytes()} bytes, more than {LIMIT}: {parts}")
    shutil.rmtree(folder, ignore_errors=True)
    packed.path.rename(folder)
    return Packed(folder)


def copy_project(packed: Packed) -> None:
    """Copy the files that git tracks, as they are now; links remain links."""
    for name in _git("ls-files", "-z").split("\0"):
        source, target = ROOT / name, packed.project / name
        if name and (source.exists() or source.is_symlink()):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)


def download_packages(packed: Packed) -> None:
    """Download wheels for Python 3.12, with the hashes of requirements.lock, and Horovod's source."""
    blocks = re.split(r"^(?=[a-z])", (ROOT / "requirements.lock").read_text(), flags=re.M)
    locked = "".join(block for block in blocks if block.split("==")[0] in LOCKED)
    target = ["--only-binary", ":all:", "--python-version", "3.12", "--implementation", "cp"]
    target += [word for platform in PLATFORMS for word in ("--platform", platform)]
    _download(packed.wheels, locked, *target)
    _download(packed.wheels, "liger-kernel", *target)  # to compare with
    _download(packed.path / "sources", horovod_requirement(), "--no-binary", "horovod", "--no-build-isolation")


def horovod_requirement() -> str:
    """Return the version and the hash of Horovod's source that tools/horovod.sh builds, as pip reads them."""
    text = (ROOT / "tools" / "horovod.sh").read_text()
    version, digest = (re.search(rf"^HOROVOD_{name}=(\S+)", text, re.M) for name in ("VERSION", "SHA256"))
    assert version, "tools/horovod.sh names no version of Horovod"
    assert digest, "tools/horovod.sh names no hash of Horovod"
    return f"horovod=={version[1]} --hash=sha256:{digest[1]}"


def _download(folder: Path, requirements: str, *options: str) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(requirements)
        file.flush()
        command = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check", "download", "-qq"]
        hashes = ["--require-hashes"] if "--hash" in requirements else []
        subprocess.run([*command, "--no-deps", *hashes, *options, "-d", folder, "-r", file.name], check=True)


def make_store(packed: Packed) -> None:
    """Prepare a package of Python's own library, a few hundred kilobytes, as text to train on."""
    packed.store.parent.mkdir(parents=True, exist_ok=True)
    text = Path(sysconfig.get_path("stdlib"), "asyncio")
    _hpcdistill("prepare", "text", "--input", text, "--output", packed.store, "--include", "*.py")


def train_on_cpu(packed: Packed, steps: int) -> None:
    """Train a small model on this CPU in float32, and keep its validation losses."""
    keys = [*CURVE_KEYS, f"--train.steps={steps}", f"--train.validate_every={max(1, steps // 4)}"]
    with tempfile.TemporaryDirectory() as run_dir:
        config = ROOT / "configs" / "demo.toml"
        _hpcdistill("train", config, f"--data.path={packed.store}", f"--run_dir={run_dir}", *keys)
        losses = validation_losses(read_metrics(Path(run_dir), 0))
    packed.curve.write_text(json.dumps({"keys": keys, "validation_losses": losses}, indent=1) + "\n")


def _hpcdistill(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "hpcdistill", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"gpu_check: hpcdistill {arguments[0]} ended with status {done.returncode}: {done.stderr}")


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout
