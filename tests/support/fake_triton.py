"""Stand-in for Triton's driver and compiler: launches of tensors on a CPU are recorded, and nothing is computed."""

from typing import Any

from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.jit import JITFunction


class FakeDriver:
    """Driver of one H100."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


class FakeKernel(CompiledKernel):  # type: ignore[misc]
    """Compiled kernel that appends its key, the grid and the kernel's arguments of each launch to a list."""

    def __init__(self, key: str, launches: list[tuple[Any, ...]]) -> None:
        self.name, self.module = key, self  # it is loaded
        self.src = self.function = self.packed_metadata = None
        # After the grid come stream, function, two kinds of metadata and two hooks.
        self._run = lambda *arguments: launches.append((key, *arguments[:3], *arguments[9:]))

    def __del__(self) -> None:
        """Keep the base class from unloading it."""


def install(function: JITFunction) -> list[tuple[Any, ...]]:
    """Replace driver and compiler for launches of `function`; return the list of its launches."""
    launches: list[tuple[Any, ...]] = []
    compiled: dict[str, FakeKernel] = {}

    def compile_nothing(key: str, signature: Any, device: int, *arguments: Any) -> FakeKernel:
        kernel = function.device_caches[device][0][key] = compiled.setdefault(key, FakeKernel(key, launches))
        return kernel

    driver.set_active(FakeDriver())
    function._do_compile = compile_nothing
    return launches
