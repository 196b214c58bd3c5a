"""Tests of losses and kernels on a machine with torch, pytest, hypothesis and numpy, but without MPI and Horovod."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from compile_ahead import compiling
from repository import ROOT

pytestmark = pytest.mark.launch

ABSENT = ("mpi4py", "horovod", "pydantic", "pydantic_settings", "tqdm", "h5py", "matplotlib")
PYTEST = """
import sys
for name in sys.argv.pop(1).split(","):
    sys.modules[name] = None  # importing it raises ImportError
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


def run_pytest(absent: Sequence[str], *arguments: str) -> str:
    """Run pytest in a process that cannot import the packages in `absent`; return its output.

    Plugins of pytest are not loaded either.
    """
    command = [sys.executable, "-c", PYTEST, ",".join(absent), "-p", "no:timeout", "-p", "no:xdist", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_losses_and_kernels_without_the_packages_of_a_cluster() -> None:
    """All files are collected, and some tests of them run."""
    some = "test_no_rows or test_parts or keep_an_instance or match_the_formula and group0"
    output = run_pytest(ABSENT, "tests/losses", "tests/kernels", "-v", "-k", some)
    assert "MPI: none, rank 0 of 1" in output
    for name in ("triton_codistillation.py::test_no_rows", "vocab_parallel.py::test_only_callers", "test_parts"):
        assert re.search(rf"{name}\S* PASSED", output), output
    skipped = re.findall(r"^SKIPPED .*", output, re.M)
    assert all("horovod" in line or "GPU: " in line for line in skipped), skipped


def test_an_mpi4py_without_an_mpi_library() -> None:
    program = "import sys; sys.path += sys.argv[1:]; import conftest; assert conftest.MPI is None; conftest.WORLD.size"
    command = [sys.executable, "-c", program, str(ROOT / "tests"), str(ROOT / "tests" / "support")]
    subprocess.run(command, check=True, timeout=200, env=os.environ | {"MPI4PY_LIBMPI": "/none.so"})


@pytest.mark.parametrize("count", [1, 3])
def test_each_kernel_is_compiled_once_and_in_one_process(count: int) -> None:
    compiled = []

    def run(x: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        assert warmup
        compiled.append((x.dtype, options["num_warps"]))

    for number in range(count):
        run_share = compiling(run, number, count)
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            for num_warps in (4, 8, 16):
                for columns in (100, 101, 102):  # one kernel for all three
                    run_share(torch.empty(2, dtype=dtype), columns, grid=(1,), warmup=False, num_warps=num_warps)
    assert len(compiled) == 9
    assert len(set(compiled)) == 9
