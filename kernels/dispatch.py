"""Choice of the implementation of the fused loss, and the fallback to torch if one that "auto" has chosen fails."""

import textwrap
import warnings
from functools import cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from hpcdistill.kernels.rows import Rows

IMPLEMENTATIONS = {"cpu": ("cpu", "torch"), "cuda": ("triton", "torch", "cuda")}
"""Names of implementations by device type, in the order in which "auto" tries them; ROCm's device type is "cuda", too.
`hpcdistill.kernels` has a module for each. "cuda" comes after "torch", which never fails, because it has not been
measured yet."""

_failures: dict[str, str] = {}  # implementations that have failed in this process, and why


def run(implementation: str, rows: Rows) -> None:
    """Fill the outputs of `rows` with an implementation; "auto" takes the first that is installed and works.

    An implementation that "auto" has chosen may fail when it is compiled or launched, on a GPU that it does not support
    for instance. Then torch takes its place, for the rest of the process, and a warning says so.

    Raises:
        torch.OutOfMemoryError: There is no memory for a temporary tensor; another implementation needs more.
        Exception: The implementation that the caller has named failed.
    """
    if implementation != "auto":
        _module(implementation).run(rows)
        return
    name = _first_usable(rows.logits.device.type)
    try:
        _module(name).run(rows)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if name == "torch":
            raise
        _record_failure(name, error)
        _module("torch").run(rows)


def scale_rows_(gradient: Tensor, factors: Tensor) -> None:
    """Multiply row r of `gradient` ``[rows, any]`` on a GPU by `factors` ``[rows]``, in place.

    Triton's kernel does not access a row whose factor is 1; torch takes its place if it fails.
    """
    if _is_usable("triton"):
        try:
            _module("triton").scale_rows_(gradient, factors)
            return
        except Exception as error:
            _record_failure("triton", error)
    gradient.mul_(factors.unsqueeze(-1))


def _first_usable(device: str) -> str:
    """Return the name of the first usable implementation; warn, once, if a faster one is not installed."""
    name = next(name for name in IMPLEMENTATIONS[device] if _is_usable(name))
    fastest = IMPLEMENTATIONS[device][0]
    if name != fastest and fastest not in _failures:
        _failures[fastest] = _import_error(fastest)
        warnings.warn(f"codistillation_loss uses {name!r} here, which is slow: {_failures[fastest]}", stacklevel=1)
    return name


def _is_usable(name: str) -> bool:
    return name not in _failures and not _import_error(name)


def _record_failure(name: str, error: Exception) -> None:
    """Exclude an implementation from the choice of "auto", with a warning."""
    _failures[name] = textwrap.shorten(f"{type(error).__name__}: {error}", 500)
    warnings.warn(
        f"codistillation_loss uses 'torch' from now on, which is slow: {name!r} has failed with {_failures[name]}."
        f" implementation={name!r} shows the whole error",
        stacklevel=1,
    )


@cache
def _import_error(name: str) -> str:
    """Return why an implementation is not installed; empty if it is."""
    try:
        module = _module(name)
        if hasattr(module, "library"):
            module.library()
    except ImportError as error:
        return str(error)
    return ""


def _module(name: str) -> ModuleType:
    return import_module(f"hpcdistill.kernels.{name}_codistillation")
