"""Calls of the kernels that the check makes: sizes, dtypes and options."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

CLASSES = (1, 11, 1000, 16384, 32000, 50257, 128256, 262144)
DTYPES = ("float32", "bfloat16", "float16", "float64")
OPTIONS = ("plain", "in place", "options")
LOSS_BAR = {"float32": 2e-6, "bfloat16": 2e-6, "float16": 2e-6, "float64": 1e-12}
"""Largest error of a loss, relative to the loss, or to 1 where it is less."""
CPU_LOSS_BAR = 2e-5
"""The same for 16-bit logits on a CPU, whose exponential is a shorter polynomial for these."""
GRADIENT_BAR = {"float32": 1e-5, "bfloat16": 4e-3, "float16": 1e-3, "float64": 1e-12}
"""Largest error of a gradient, relative to its largest element, or to 1 where this is less; rounding to bfloat16 is an
error of 2e-3."""


@dataclass(frozen=True)
class Call:
    """One call of a kernel: vocabulary size V, number of teachers N, dtype and options."""

    V: int
    N: int
    dtype: str
    options: str = "plain"

    def __str__(self) -> str:
        return f"V={self.V} N={self.N} {self.dtype} {self.options}"


FIRST = tuple(Call(32000, 1, dtype) for dtype in DTYPES)
"""A call of each dtype; if one is wrong, the remaining steps of its implementation are not run."""

SANITIZED = (
    Call(11, 1, "float32"),
    Call(1000, 0, "bfloat16", "options"),
    Call(1500, 2, "float64"),
    Call(4001, 3, "float16", "options"),
    Call(32000, 1, "bfloat16", "in place"),
    Call(50257, 1, "bfloat16"),
)
"""Small calls of all kinds, for compute-sanitizer, under which a kernel is very slow."""


VARIED = ((32000, 1), (32000, 3), (128256, 1), (128256, 3))
"""V and N of the calls for which other launches of Triton's kernel are timed, in bfloat16."""


def grid(is_dry: bool) -> Iterator[Call]:
    """Yield all calls of the grid; the short rows alone on a CPU."""
    for V, N, dtype, options in product(CLASSES[: 3 if is_dry else None], (0, 1, 3), DTYPES, OPTIONS):
        if not is_dry or (N != 1 and options != "in place"):
            yield Call(V, N, dtype, options)


def table(is_dry: bool) -> Iterator[tuple[int, int, str]]:
    """Yield the settings of the table of speeds: V, N and the name of the dtype."""
    if is_dry:
        yield (1000, 1, "bf16")
        return
    yield from product((1000, 32000, 50257, 128256, 262144), (0, 1, 3), ("bf16", "fp32"))


def profiled(is_dry: bool) -> Iterator[tuple[str, int, int]]:
    """Yield the kernels that ncu looks at: implementation, V and N, in bfloat16."""
    if not is_dry:
        yield from product(("triton", "cuda"), (32000, 128256), (1,))
        yield from product(("triton", "cuda"), (32000,), (3,))
