"""The same bits in every call: on several streams, in CUDA graphs, and without any synchronization."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gpu_check.cases import Call
from gpu_check.probes.options import make_parser
from gpu_check.probes.rows import rows_of, runner
from gpu_check.report import Report
from hpcdistill import codistillation_loss
from hpcdistill.kernels.rows import Rows

STREAMS, REPEATS = 4, 200
CALLS = (Call(128256, 1, "bfloat16"), Call(32000, 3, "float32", "options"))


def main() -> None:
    """Run all repeats of each implementation."""
    parser = make_parser(__doc__)
    parser.add_argument("--implementation", nargs="+", default=["triton", "cuda"])
    options = parser.parse_args()
    report = Report(options.json)
    calls = (Call(11, 1, "bfloat16"),) if options.dry_run else CALLS
    for implementation in options.implementation:
        for call in calls:
            _, rows = rows_of(call, options.device)
            repeat(report, f"{implementation}, {call}", runner(implementation), rows, 8 if options.dry_run else REPEATS)
            if options.device == "cuda":
                replay(report, f"{implementation}, {call}", runner(implementation), rows)
        unsynchronized(report, implementation, calls[0], options.device)


def repeat(report: Report, name: str, run: Callable[[Rows], None], rows: Rows, repeats: int) -> None:
    """Count the calls on alternating streams whose outputs are those of the first, bit for bit."""
    run(rows)
    is_gpu = rows.logits.is_cuda
    streams = [torch.cuda.Stream() for _ in range(STREAMS)] if is_gpu else [None]
    if is_gpu:
        torch.cuda.synchronize()
    outputs = []
    for number in range(repeats):
        stream = streams[number % len(streams)]
        with torch.cuda.stream(stream) if stream is not None else nullcontext():
            outputs.append(poisoned(rows))
            run(outputs[-1])
    if is_gpu:
        torch.cuda.synchronize()
    same = sum(is_same(each, rows) for each in outputs)
    report.bar(f"{name}: equal bits on {len(streams)} streams", f"{same}/{repeats}", "all", same == repeats)


def replay(report: Report, name: str, run: Callable[[Rows], None], rows: Rows) -> None:
    """Capture a call in a CUDA graph and compare ten replays."""
    run(rows)
    captured = poisoned(rows)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run(captured)
    same = 0
    for _ in range(10):
        for output in (captured.losses, captured.parts, captured.gradient):
            assert output is not None
            output.fill_(torch.nan)
        graph.replay()
        same += is_same(captured, rows)
    report.bar(f"{name}: equal bits in a CUDA graph", f"{same}/10", "all", same == 10)


def unsynchronized(report: Report, implementation: str, call: Call, device: str) -> None:
    """Run the public loss and its backward while torch refuses all synchronization."""
    _, rows = rows_of(call, device)
    logits = rows.logits.detach().clone().requires_grad_()
    target = rows.target.clone()

    def step() -> Tensor:
        loss = codistillation_loss(logits, target, rows.teachers, implementation=implementation)
        return torch.autograd.grad(loss, logits)[0]

    expected = step()
    with refusing_synchronization(device):
        gradient = step()
    equal = torch.equal(gradient, expected)
    report.bar(
        f"{implementation}: loss and backward without synchronization", "equal" if equal else "differ", "equal", equal
    )


@contextmanager
def refusing_synchronization(device: str) -> Iterator[None]:
    """Let torch raise an error at any synchronization with a GPU."""
    if device == "cpu":
        yield
        return
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mode is a prototype, says torch
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def poisoned(rows: Rows) -> Rows:
    """Return a call with the same inputs and outputs of its own, which are NaN."""
    outputs: dict[str, Any] = {
        name: torch.full_like(getattr(rows, name), torch.nan) for name in ("losses", "parts", "gradient")
    }
    return replace(rows, **outputs)


def is_same(one: Rows, other: Rows) -> bool:
    """Return whether all outputs are equal bit for bit."""
    pairs = [(getattr(one, name), getattr(other, name)) for name in ("losses", "parts", "gradient")]
    return all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in pairs)


if __name__ == "__main__":
    main()
