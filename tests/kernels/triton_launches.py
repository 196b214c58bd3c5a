"""Checks of the Triton kernel's launches; test_triton_codistillation.py starts them where Triton does not interpret."""

# ruff: noqa: N806 - V and N are the names in the formula

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

import fake_triton
from hpcdistill.kernels.rows import Rows, Shard
from hpcdistill.kernels.triton_codistillation import _compiled, _scale_kernel, kernel, run, scale_rows_
from loss_oracle import random_case


def variants() -> Iterator[tuple[str, Rows]]:
    """Yield calls that need different code, or that differ from the first one in a single argument."""
    case = random_case(rows=4, V=64, N=2, dtype=torch.bfloat16)
    rows = case.rows()
    yield "plain", rows
    for V in (1, 63, 72, 20000):
        yield f"V = {V}", random_case(rows=4, V=V, N=2, dtype=torch.bfloat16).rows()
    for N in (0, 1, 3):
        yield f"N = {N}", random_case(rows=4, V=64, N=N, dtype=torch.bfloat16).rows()
    for dtype in (torch.float16, torch.float32, torch.float64):
        yield str(dtype), random_case(rows=4, V=64, N=2, dtype=dtype).rows()
    yield "temperature", replace(rows, temperature=2.0)
    yield "smoothing", replace(rows, label_smoothing=0.1)
    weight = torch.ones(64)
    yield "class weights", replace(rows, class_weight=weight)
    yield "smoothing with class weights", replace(rows, label_smoothing=0.1, class_weight=weight)
    yield "teacher_lse", replace(rows, teacher_lse=torch.zeros(2, 4))
    yield "no gradient", replace(rows, gradient=None)
    yield "a wide ignore_index", replace(rows, ignore_index=-(2**40))
    yield "an unaligned teacher", replace(rows, teachers=[torch.zeros(4, 65, dtype=torch.bfloat16)[:, 1:]] * 2)
    yield "a wide stride", replace(rows, logits=rows.logits.as_strided((1, 64), (2**33, 1)), target=rows.target[:1])
    single = random_case(rows=4, V=64, N=2, dtype=torch.float32).rows()
    yield "a narrow gradient", replace(single, gradient=torch.empty(4, 64, dtype=torch.bfloat16))
    lse = torch.zeros(4, 4, dtype=torch.float64)
    for first, is_merged in ((0, False), (1, False), (16, True)):
        yield f"shard at {first}", replace(rows, shard=Shard(first, 128, lse, is_merged))


def check_cached_launches(launches: list[tuple[Any, ...]]) -> None:
    """Check that a launch from the cache is the one that Triton would make, whichever calls came before."""
    calls = list(variants())
    expected = []
    for _, rows in calls:
        _compiled.clear()
        run(rows)
        expected.append(launches.pop())
    assert len({key for key, *_ in expected}) > len(calls) - 4, "the variants should need different code"
    for _, rows in calls:
        run(rows)
    launches.clear()
    with_triton, kernel.run = kernel.run, None
    for (name, rows), launch in zip(calls, expected, strict=True):
        run(rows)
        assert same(launches.pop(), launch), name
    run(first_rows(calls[0][1], 2))  # the number of rows does not change the code
    assert launches.pop()[1] == 2
    kernel.run = with_triton


def first_rows(rows: Rows, count: int) -> Rows:
    """Return the call for the first rows alone."""
    assert rows.gradient is not None
    return replace(
        rows,
        logits=rows.logits[:count],
        teachers=[teacher[:count] for teacher in rows.teachers],
        target=rows.target[:count],
        losses=rows.losses[:count],
        parts=rows.parts[:, :count],
        gradient=rows.gradient[:count],
    )


def same(a: Any, b: Any) -> bool:
    """Compare the arguments of launches; a tensor is the same if its memory is, but a sum is made for each launch."""
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        is_sum = a.dim() == 0
        return bool(torch.equal(a, b)) if is_sum else a.data_ptr() == b.data_ptr() and a.stride() == b.stride()
    return bool(a == b)


def check_calls_per_launch() -> None:
    """Check that a launch from the cache calls fewer functions than one by Triton, whose calls take longer, too."""
    rows = next(variants())[1]
    run(rows)
    from_cache = calls_of_a_launch(rows)
    _compiled.clear()
    assert from_cache < 0.8 * calls_of_a_launch(rows)


def calls_of_a_launch(rows: Rows) -> int:
    called = []
    sys.setprofile(lambda frame, event, argument: called.append(event) if event in ("call", "c_call") else None)
    run(rows)
    sys.setprofile(None)
    return len(called)


def check_scaling(launches: list[tuple[Any, ...]]) -> None:
    """Check the cached launches of the kernel that scales gradients."""
    memory = torch.zeros(4, 80, dtype=torch.bfloat16)
    factors = torch.ones(4)
    calls = [(memory, factors), (memory[:, :64], factors), (memory[:, 1:65], factors), (memory, factors[:1].expand(4))]
    calls += [(memory.float(), factors), (memory.double(), factors.double())]
    expected = []
    for call in calls:
        _compiled.clear()
        scale_rows_(*call)
        expected.append(launches.pop())
    for call in calls:
        scale_rows_(*call)
    launches.clear()
    with_triton, _scale_kernel.run = _scale_kernel.run, None
    for call, launch in zip(calls, expected, strict=True):
        scale_rows_(*call)
        assert same(launches.pop(), launch), call
    scale_rows_(memory[:2], factors[:2])
    assert launches.pop()[1] == 2
    _scale_kernel.run = with_triton


if __name__ == "__main__":
    check_cached_launches(fake_triton.install(kernel))
    check_calls_per_launch()
    check_scaling(fake_triton.install(_scale_kernel))
