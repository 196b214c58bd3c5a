"""Kernels against the formula in float64, on outputs that are NaN before each call.

    python -m gpu_check.probes.rows first|grid|sanitized --implementation NAME... [--share 2/16]

With `--share` it compiles its share of the kernels of Triton for these calls, and launches nothing.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib import import_module
from itertools import product
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from gpu_check import cases
from gpu_check.cases import CPU_LOSS_BAR, GRADIENT_BAR, LOSS_BAR, Call
from gpu_check.probes.options import make_parser
from gpu_check.report import Report
from hpcdistill.kernels.rows import Rows
from loss_oracle import Case, on, random_case, reference

ROWS = 5
OPTIONS = {"temperature": 2.0, "label_smoothing": 0.1, "z_loss": 1e-4, "distill_weight": 0.5}


def main() -> None:
    """Run the calls."""
    parser = make_parser(__doc__)
    parser.add_argument("calls", choices=["first", "grid", "sanitized", "table"])
    parser.add_argument("--implementation", nargs="+", default=["triton", "cuda"])
    parser.add_argument("--share", help="number of this process and of all, such as 2/16")
    options = parser.parse_args()
    report = Report(options.json)
    calls = list(chosen(options.calls, options.dry_run))
    if options.share:
        number, count = map(int, options.share.split("/"))
        with compiling_only(number, count):
            for call in calls:
                runner("triton")(rows_of(call, options.device)[1])
        return
    for implementation in options.implementation:
        compare(report, implementation, calls, options.device)


def chosen(name: str, is_dry: bool) -> Iterator[Call]:
    """Return the calls of a name."""
    if name == "table":
        dtypes = {"bf16": "bfloat16", "fp32": "float32"}
        return (Call(V, N, dtypes[dtype]) for V, N, dtype in cases.table(is_dry))
    if name == "grid":
        return cases.grid(is_dry)
    return iter({"first": cases.FIRST, "sanitized": cases.SANITIZED}[name][: 2 if is_dry else None])


def runner(implementation: str) -> Callable[[Rows], None]:
    """Return the function that calls an implementation."""
    run: Callable[[Rows], None] = import_module(f"hpcdistill.kernels.{implementation}_codistillation").run
    return run


@contextmanager
def compiling_only(number: int, count: int) -> Iterator[None]:
    """Let Triton compile a share of the kernels and launch none."""
    from compile_ahead import compiling
    from hpcdistill.kernels import triton_row

    with ExitStack() as stack:
        kernel = triton_row.kernel
        stack.enter_context(mock.patch.object(kernel, "run", compiling(kernel.run, number, count)))
        yield


def case_of(call: Call) -> Case:
    """Return the inputs of a call, on the CPU: one row is ignored, and rows lie apart if there are options."""
    options: dict[str, Any] = {}
    if call.options == "options":
        class_weight = torch.rand(call.V, generator=torch.Generator().manual_seed(1)) + 0.1
        options = {**OPTIONS, "class_weight": class_weight, "lse_is_given": call.N > 1}
    case = random_case(rows=ROWS, V=call.V, N=call.N, dtype=getattr(torch, call.dtype), **options)
    case = replace(case, logits=3 * case.logits, teachers=[3 * teacher for teacher in case.teachers])
    case.target[2] = case.ignore_index
    if call.options == "options":
        case = replace(case, logits=apart(case.logits), teachers=[apart(teacher) for teacher in case.teachers])
    return case


def apart(logits: Tensor) -> Tensor:
    """Return equal logits whose rows are three columns apart: they begin at addresses of any alignment."""
    wide = logits.new_zeros(len(logits), logits.shape[1] + 3)
    wide[:, : logits.shape[1]] = logits
    return wide[:, : logits.shape[1]]


def rows_of(call: Call, device: str) -> tuple[Case, Rows]:
    """Return inputs and outputs of a call; the outputs are NaN, or the logits themselves."""
    case = case_of(call)
    rows = case.rows()
    if call.options == "in place":
        logits = case.logits.clone()
        rows = replace(rows, logits=logits, gradient=logits)
    return case, on(rows, device)


def compare(report: Report, implementation: str, calls: list[Call], device: str) -> None:
    """Report the largest errors of an implementation by dtype, and judge them."""
    worst: dict[tuple[str, str], tuple[float, str]] = {}
    counts: Counter[str] = Counter()
    run = runner(implementation)
    for call in calls:
        case, rows = rows_of(call, device)
        try:
            run(rows)
        except RuntimeError as error:
            if "does not fit" not in str(error) and "use implementation='triton'" not in str(error):
                raise RuntimeError(f"{implementation}, {call}: {error}") from error
            counts["refused"] += 1  # a row does not fit into a cluster
            continue
        counts["compared"] += 1
        for kind, value in zip(("loss", "gradient"), errors(case, on(rows, "cpu")), strict=True):
            key = (kind, call.dtype)
            worst[key] = max(worst.get(key, (-1.0, "")), (value, str(call)))
    report.row("calls", implementation=implementation, **counts)
    for kind, dtype in product(("loss", "gradient"), GRADIENT_BAR):
        if (kind, dtype) in worst:
            value, where = worst[kind, dtype]
            report.row(
                "largest errors", implementation=implementation, output=kind, dtype=dtype, error=value, where=where
            )
            limit = (LOSS_BAR if kind == "loss" else GRADIENT_BAR)[dtype]
            if implementation == "cpu" and kind == "loss" and dtype in ("bfloat16", "float16"):
                limit = CPU_LOSS_BAR
            report.at_most(f"{implementation}: error of the {kind}, {dtype}", value, limit)


def errors(case: Case, rows: Rows) -> tuple[float, float]:
    """Return the largest relative errors of losses and parts, and of the gradient; infinite where one is not finite."""
    losses, gradient, terms = reference(case)
    found = torch.cat([rows.losses.unsqueeze(0), rows.parts]).double()
    true = torch.stack([losses, *terms])
    assert rows.gradient is not None
    loss_error = ((found - true).abs() / true.abs().clamp(min=1)).max()
    gradient_error = (rows.gradient.double() - gradient).abs().max() / gradient.abs().max().clamp(min=1)
    both = torch.stack([loss_error, gradient_error]).nan_to_num(nan=torch.inf).tolist()
    return both[0], both[1]


if __name__ == "__main__":
    main()
