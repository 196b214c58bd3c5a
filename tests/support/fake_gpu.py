"""Tensors of a GPU that is not there: they have a shape and a dtype, but no memory. Their operators are recorded."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

GPU, META = torch.device("cuda", 0), torch.device("meta")


class _OnGpu(TorchFunctionMode):
    """Mode in which tensors on the device "meta" say that they are on a GPU. Torch's fake tensors need a CUDA build."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(lambda x: META if isinstance(x, torch.device) and x == GPU else x, (args, kwargs or {}))
        result = func(*args, **kwargs)
        if func == Tensor.device.__get__ and result.type == "meta":
            return GPU
        return args[0].device.type == "meta" if func == Tensor.is_cuda.__get__ else result


class Launches(TorchDispatchMode):
    """Record of the operators that would launch a kernel which reads or writes at least `smallest` elements.

    Attributes:
        names: names of these operators, such as "addmm.dtype_out", in order.
    """

    def __init__(self, smallest: int) -> None:
        super().__init__()
        self.names: list[str] = []
        self._smallest = smallest

    def __torch_dispatch__(self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Record the operator; compute the shape and the dtype of its result."""
        kwargs = kwargs or {}
        if func.__name__.startswith(("mm", "addmm")):
            _require_supported_product(args, kwargs)
        # Overloads for CUDA alone compute nothing here.
        result = kwargs["out"] if "out" in kwargs else func(*args, **kwargs)
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
        assert {x.device.type for x in tensors} <= {"meta"}, f"{func} has a tensor on another device"
        is_launch = not (func.is_view or "empty" in func.__name__)
        if is_launch and max(x.numel() for x in tensors) >= self._smallest:
            self.names.append(func.__name__)
        return result


def _require_supported_product(args: Any, kwargs: Any) -> None:
    """Check that CUDA's operators, of torch 2.10 or newer, support these dtypes."""
    *added, left, right = [x for x in args if isinstance(x, Tensor)]
    out = kwargs.get("out", added[0] if added else left)
    assert left.dtype == right.dtype
    assert out.dtype == left.dtype or (out.dtype == torch.float32 and left.dtype.itemsize == 2)
    assert all(x.dtype in (left.dtype, out.dtype) for x in added)


class _Copies(TorchDispatchMode):
    """Record of operators that copy between the host and the GPU, in either direction."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self._found = found

    def __torch_dispatch__(self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        devices = {x.device.type for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)}
        # A number on the host may be an argument of a kernel.
        if len(devices) > 1 and "copy" in func.__name__:
            self._found.append(func.__name__)
        return result


@contextmanager
def recorded_copies() -> Iterator[list[str]]:
    """Record copies between the host and the device "meta", which here is a GPU. Reading a value there raises."""
    found: list[str] = []
    with _OnGpu(), _Copies(found):
        yield found


@contextmanager
def recorded_launches(smallest: int) -> Iterator[Launches]:
    """Record launches of at least `smallest` elements on tensors of the device "meta", which here is a GPU."""
    with _OnGpu(), Launches(smallest) as launches:
        yield launches
