"""The choice of an implementation, and what happens if one fails."""

from types import ModuleType, SimpleNamespace

import pytest
import torch

from hpcdistill.kernels import dispatch
from hpcdistill.kernels.rows import Rows
from loss_oracle import Case, assert_matches_reference, random_case

pytestmark = pytest.mark.alone


class BrokenKernel:
    """Implementation that fails, as one does that cannot be compiled for a GPU; it counts its calls."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.calls = 0

    def run(self, rows: Rows) -> None:
        self.calls += 1
        raise self.error

    def scale_rows_(self, gradient: torch.Tensor, factors: torch.Tensor) -> None:
        self.calls += 1
        raise self.error


@pytest.fixture(autouse=True)
def no_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_failures", {})


def broken(monkeypatch: pytest.MonkeyPatch, name: str, error: Exception) -> BrokenKernel:
    kernel, module = BrokenKernel(error), dispatch._module

    def modules(asked: str) -> ModuleType | SimpleNamespace:
        return SimpleNamespace(run=kernel.run, scale_rows_=kernel.scale_rows_) if asked == name else module(asked)

    monkeypatch.setattr(dispatch, "_module", modules)
    monkeypatch.setattr(dispatch, "_import_error", lambda name: "")
    return kernel


def filled(case: Case, implementation: str = "auto") -> Rows:
    rows = case.rows()
    dispatch.run(implementation, rows)
    return rows


def test_auto_takes_torch_if_the_kernel_fails_and_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = broken(monkeypatch, "cpu", RuntimeError("no such\n  instruction"))
    case = random_case()
    with pytest.warns(UserWarning, match="'torch' from now on.*'cpu' has failed with RuntimeError: no such instr"):
        assert_matches_reference(case, filled(case))
    assert_matches_reference(case, filled(case))  # a second warning would be an error
    assert kernel.calls == 1


def test_an_implementation_that_was_named_fails_with_its_own_error(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = broken(monkeypatch, "cpu", RuntimeError("no such instruction"))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no such instruction"):
            filled(random_case(), "cpu")
    assert kernel.calls == 2


def test_missing_memory_is_not_a_failure_of_the_implementation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller can ask for fewer rows, as the loss of hidden states does; torch would need even more memory."""
    kernel = broken(monkeypatch, "cpu", torch.OutOfMemoryError("4 GiB"))
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            filled(random_case())
    assert kernel.calls == 2


def test_an_error_of_torch_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, "torch", RuntimeError("a mistake"))
    monkeypatch.setitem(dispatch.IMPLEMENTATIONS, "cpu", ("torch",))
    with pytest.raises(RuntimeError, match="a mistake"):
        filled(random_case())


def test_scaling_on_a_gpu_takes_torch_if_triton_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = broken(monkeypatch, "triton", RuntimeError("no compiler"))
    gradient = torch.ones(3, 2)
    with pytest.warns(UserWarning, match="'triton' has failed with RuntimeError: no compiler"):
        dispatch.scale_rows_(gradient, torch.tensor([1.0, 2.0, 3.0]))
    dispatch.scale_rows_(gradient, torch.tensor(2.0).expand(3))
    assert gradient.tolist() == [[2, 2], [4, 4], [6, 6]]
    assert kernel.calls == 1


def test_a_kernel_that_is_not_installed_causes_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_import_error", lambda name: "no compiler" if name == "cpu" else "")
    case = random_case()
    with pytest.warns(UserWarning, match="uses 'torch' here, which is slow: no compiler"):
        assert_matches_reference(case, filled(case))
    assert_matches_reference(case, filled(case))  # a second warning would be an error


def test_auto_takes_the_kernel_that_is_installed() -> None:
    assert dispatch._first_usable("cpu") == "cpu"
