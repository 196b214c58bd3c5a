"""Calls for which the host would wait for a GPU, found on a CPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

COPIES = (Tensor.cpu, Tensor.numpy, Tensor.tolist, Tensor.__array__)
READING = {"_local_scalar_dense", "nonzero", "masked_select", "unique", "unique2", "unique_dim", "equal"}
"""Operators whose result, or its shape, the host has to read."""


class _Operators(TorchDispatchMode):
    """Record of operators that read values; those that torch calls in C++ are among them."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self._found = found

    def __torch_dispatch__(self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::").lstrip("_") if func.namespace == "aten" else ""
        reads = name in {each.lstrip("_") for each in READING}
        selects = name in ("index", "index_put", "index_put_") and any(
            isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1]
        )
        if reads or selects:
            self._found.append(name)
        return func(*args, **(kwargs or {}))


class _Copies(TorchFunctionMode):
    """Record of copies to the host, which do nothing on a CPU."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self._found = found

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # A device that is not written down may be a GPU in another run.
        to_host = func is Tensor.to and any(isinstance(x, str) and x == "cpu" for x in (*args[1:], *kwargs.values()))
        if func in COPIES or to_host:
            self._found.append(func.__name__)
        return func(*args, **kwargs)


@contextmanager
def recorded_synchronizations() -> Iterator[list[str]]:
    """Return a list of the names of all calls in the block that would wait for a GPU, if all tensors were on one."""
    found: list[str] = []
    with _Copies(found), _Operators(found):
        yield found
