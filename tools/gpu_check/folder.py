"""Names of all files in the packed folder, and in the folder where its commands work."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

PACKED = Path(__file__).resolve().parents[3]
"""The packed folder, if this file lies in its copy of the project."""


@dataclass(frozen=True)
class Packed:
    """Folder that is carried to the GPU's machine."""

    path: Path

    @property
    def project(self) -> Path:
        """Copy of the project's files."""
        return self.path / "project"

    @property
    def wheels(self) -> Path:
        """Folder of the wheels for Python 3.12."""
        return self.path / "wheels"

    @property
    def horovod(self) -> Path | None:
        """Horovod's source distribution; None if it is not carried."""
        return next(iter(sorted((self.path / "sources").glob("horovod-*.tar.gz"))), None)

    @property
    def store(self) -> Path:
        """Prepared text on which the trainer is tried."""
        return self.path / "data" / "text.h5"

    @property
    def curve(self) -> Path:
        """Validation losses of the same training on a CPU, as JSON."""
        return self.path / "data" / "cpu_curve.json"

    @property
    def manifest(self) -> Path:
        """Facts of the packing: the commit, the time, and the size of each part."""
        return self.path / "manifest.json"

    def nbytes(self) -> int:
        """Return the size of all files."""
        return sum(path.lstat().st_size for path in self.path.rglob("*") if not path.is_dir() or path.is_symlink())


@dataclass(frozen=True)
class Work:
    """Folder for what the commands build: each finds what an earlier one has left."""

    path: Path

    @classmethod
    def open(cls, path: Path | None, packed: Packed) -> Work:
        """Return the folder with a copy of the packed project; what was built from another packing is removed."""
        work = cls(path or Path(tempfile.gettempdir(), f"hpcdistill-gpu-check-{os.getuid()}"))
        stamp, wanted = work.path / "manifest.json", json.loads(packed.manifest.read_text())
        if not stamp.exists() or json.loads(stamp.read_text()) != wanted:
            shutil.rmtree(work.path, ignore_errors=True)
            shutil.copytree(packed.project, work.project, symlinks=True)
            shutil.copy(packed.manifest, stamp)
        return work

    @property
    def project(self) -> Path:
        """Copy of the project in which the kernels are built."""
        return self.path / "project"

    @property
    def venv(self) -> Path:
        """Virtual environment with the carried wheels, above the packages of the machine's Python."""
        return self.path / "venv"

    @property
    def horovod(self) -> Path:
        """Folder of Horovod's build: its log, and its wheel when it is done."""
        return self.path / "horovod"
