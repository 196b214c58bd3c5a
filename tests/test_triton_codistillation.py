"""The Triton kernel in Triton's interpreter, on the CPU: few rows, for an interpreted block takes milliseconds."""

import os
import re
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from loss_oracle import Case, cases, random_case, truth

# Triton reads it at its first import, at a kernel's definition and at its launch: so for the whole process.
os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton", minversion="3.7", reason="older interpreters fail with numpy >= 2.4")

from hpcdistill.kernels.triton_codistillation import loss_and_gradient


def check(case: Case) -> None:
    loss, gradient = loss_and_gradient(case.logits, case.target, case.teachers, **case.numbers())
    true_loss, true_gradient = truth(case, "none")
    loss_tolerance, gradient_tolerance = case.tolerances()
    torch.testing.assert_close(loss.double(), true_loss, rtol=1e-6, atol=loss_tolerance * 10)
    torch.testing.assert_close(gradient.double(), true_gradient, rtol=0, atol=gradient_tolerance)
    assert gradient.dtype == case.logits.dtype


@settings(max_examples=25)
@pytest.mark.filterwarnings("ignore:invalid value encountered in multiply")  # in lanes that `where` throws away
@given(case=cases([1, 2, 3, 127, 1000, 2500], [torch.float32, torch.bfloat16, torch.float16], most_rows=2))
def test_loss_and_gradient_are_those_of_the_formula(case: Case) -> None:
    check(case)


@pytest.mark.filterwarnings("ignore:invalid value encountered in multiply")
def test_a_class_no_teacher_believes_in() -> None:
    case = random_case(rows=2, V=6, dtype=torch.float32)
    for teacher in case.teachers:
        teacher[:, 4] = -torch.inf
    check(case)


@pytest.mark.filterwarnings("ignore:invalid value encountered in multiply")
def test_gradient_is_written_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory is poisoned: a column that the kernel forgets stays NaN."""
    empty_like = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda x: empty_like(x).fill_(torch.nan))
    case = random_case(rows=2, V=2049, dtype=torch.float32)
    case.target[1] = -100
    gradient = loss_and_gradient(case.logits, case.target, case.teachers, **case.numbers())[1]
    assert gradient.isfinite().all()


COMPILE = """
import subprocess, sys, tempfile
from pathlib import Path
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from hpcdistill.kernels.triton_codistillation import _BLOCK, _kernel

pointers = {name: "*bf16" for name in ("logits", "gradient")} | {"losses": "*fp32", "teacher_sums": "*fp32"}
numbers = dict.fromkeys(("weight", "temperature", "label_smoothing"), "fp32") | {"V": "i32", "ignore_index": "i32"}
constants = {"N": "constexpr", "BLOCK": "constexpr"}
cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
for N in (0, 1, 3):
    types = pointers | numbers | constants | {"target": "*i64", "teachers": ("*bf16",) * N}
    source = ASTSource(_kernel, {name: types[name] for name in _kernel.arg_names}, {"N": N, "BLOCK": _BLOCK})
    compiled = triton.compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32), options={"num_warps": 8})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        Path(cubin.name).write_bytes(compiled.asm["cubin"])
        print(subprocess.run([cuobjdump, "-res-usage", cubin.name], capture_output=True, text=True, check=True).stdout)
"""


@pytest.mark.launch  # a process of its own: this one's Triton interprets
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_compiles_for_gpus_without_spilling_registers(capability: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", COMPILE, str(capability)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100)
    assert result.returncode == 0, result.stderr
    # Spilled registers live on the stack, in local memory.
    assert len(re.findall(r"REG:\d+ STACK:0 .*LOCAL:0", result.stdout)) == 3, result.stdout
