"""The CUDA kernel on an emulated GPU: builds codistillation.cu for the CPU and runs it.

The emulation (cuda_emulation/emulator.h) knows when threads do not wait for each other as they should. Its GPU has as
little shared memory as a test wants, so that short rows need several blocks.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

from hpcdistill.kernels import c_interface
from hpcdistill.kernels.c_interface import CRows
from hpcdistill.kernels.rows import Rows
from repository import ROOT

COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
EMULATION = Path(__file__).parent / "cuda_emulation"
# The kernel's ptx.cuh is not among them: that of the emulation takes its place.
KERNEL = [
    Path(c_interface.__file__).with_name(name) for name in ("codistillation.cu", "codistillation.h", "cuda_row.cuh")
]
SYNCHRONIZATIONS = ("block barrier", "cluster barrier", "copy", "store", "fence")
LIBRARY = "libemulated_cuda.so"


class Settings(ctypes.Structure):
    """emulation::Settings of emulator.h."""

    _fields_ = (
        ("seed", ctypes.c_uint64),
        ("shared_memory_of_block", ctypes.c_int32),
        ("shared_memory_of_multiprocessor", ctypes.c_int32),
        ("most_blocks", ctypes.c_int32),
        ("removed", ctypes.c_int32),
        ("removed_index", ctypes.c_int32),
        ("device", ctypes.c_int32),
        ("queries", ctypes.c_int32),
        ("blocks", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    )


class EmulationError(Exception):
    """An error that the launcher or the emulated GPU reports."""


def run(
    rows: Rows,
    kilobytes: int = 227,
    seed: int = 0,
    removed: tuple[str, int] | None = None,
    most_blocks: int = 16,
    device: int | None = None,
) -> Settings:
    """Fill the outputs of `rows`; return the settings after the call, with its counts.

    Args:
        rows: CPU tensors.
        kilobytes: Shared memory of a block, in units of 1024 bytes. A multiprocessor has room for three such blocks;
            for one with 227, as on an H100.
        seed: Number that determines the order in which threads run.
        removed: Synchronization to leave out: its kind, and the number of its call by each thread; None for none.
        most_blocks: Largest cluster that runs.
        device: Number of the GPU; None for one that no GPU of other sizes has, as the launcher remembers their sizes.

    Raises:
        EmulationError: The launch was refused, or a thread did what it must not.
    """
    kind, index = (SYNCHRONIZATIONS.index(removed[0]), removed[1]) if removed else (-1, -1)
    settings = Settings.in_dll(library(), "emulation_settings")
    per_multiprocessor = 228 << 10 if kilobytes == 227 else 3 * (kilobytes + 1) << 10
    ctypes.pointer(settings)[0] = Settings(seed, kilobytes << 10, per_multiprocessor, most_blocks, kind, index)
    device = 100 * kilobytes + most_blocks if device is None else device
    error = library().hpcdistill_codistillation_cuda(ctypes.byref(CRows.from_rows(rows)), device, None)
    if error:
        raise EmulationError(library().hpcdistill_cuda_error_string(error).decode())
    return settings


@cache
def library() -> ctypes.CDLL:
    """Return the kernel for the emulated GPU, compiled unless a build of the same sources is kept."""
    assert COMPILER, "no C++ compiler"
    sources = sorted([*KERNEL, *EMULATION.iterdir()])
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    folder = ROOT / "build" / "cuda_emulation" / digest[:16]
    if not (folder / LIBRARY).exists():
        folder.mkdir(parents=True, exist_ok=True)
        for path in sources:
            shutil.copy(path, folder)
        unfinished = f"{LIBRARY}.{os.getpid()}"
        flags = [
            "-std=c++17",
            "-O1",
            "-fno-strict-aliasing",
            "-shared",
            "-fPIC",
            "-include",
            "cuda_runtime.h",
            "-I.",
            "-o",
            unfinished,
        ]
        command = [COMPILER, *flags, "emulator.cpp", "-x", "c++", "codistillation.cu"]
        built = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200)
        assert built.returncode == 0, built.stderr
        (folder / unfinished).rename(folder / LIBRARY)
    compiled = ctypes.CDLL(str(folder / LIBRARY))
    compiled.hpcdistill_cuda_error_string.restype = ctypes.c_char_p
    return compiled
