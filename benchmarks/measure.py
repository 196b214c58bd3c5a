"""How benchmarks measure: several contenders side by side, in turns, so that a noisy machine is noisy for all alike."""

import argparse
import ctypes
import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any

import torch

Work = Callable[[], Any]


def sweep(
    name: str,
    options: argparse.Namespace,
    header: str,
    settings: Iterable[Any],
    measure: Callable[[Any, torch.device], dict[str, Any]],
    line: Callable[[dict[str, Any]], str],
) -> None:
    """Measure one setting after the other, print a line of the table for each, and write all results as JSON."""
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    torch._inductor.config.compile_threads = 1  # no workers beside what is measured
    print(f"{machine(device)}\n\n{header}")
    results = []
    for setting in settings:
        results.append(measure(setting, device))
        print(line(results[-1]), flush=True)
    output = options.output or Path(__file__).parent / "results" / f"{name}-{device.type}.json"
    write_json(output, {"machine": machine(device), "results": results})


def in_turns(works: dict[str, Work], device: torch.device, rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, in `rounds` rounds of one call each, after one call to warm up."""
    for work in works.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            seconds[name].append(_timed(work, device))
    return seconds


def ratio(seconds: dict[str, list[float]], slower: str, faster: str) -> float:
    """How many times as long `slower` took: the median over the rounds."""
    return statistics.median(s / f for s, f in zip(seconds[slower], seconds[faster], strict=True))


def ends_all_ranks(main: Work) -> Work:
    """Make an error on one rank the end of all; another would wait for it for ever."""

    @wraps(main)
    def guarded() -> None:
        from hpcdistill.distributed.launch import end_job  # not for those benchmarks that do without MPI

        try:
            main()
        except (Exception, KeyboardInterrupt) as error:
            end_job(error)

    return guarded


def peak_extra_bytes(work: Work, device: torch.device) -> int:
    """Memory in use at the worst moment of `work`, beyond what was in use before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with suppress(AttributeError):  # not glibc, which keeps freed memory: what is taken from that would not be seen
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is in use
    before = _status_bytes("VmHWM")
    work()
    return _status_bytes("VmHWM") - before


def machine(device: torch.device) -> dict[str, Any]:
    """What a figure has to be read with."""
    facts = {"torch": torch.__version__, "python": platform.python_version()}
    if device.type == "cuda":
        return facts | {"device": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return facts | {"device": _cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}


def add_common_options(parser: argparse.ArgumentParser, result: str) -> None:
    """Options of all benchmarks."""
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="where to run (default: cpu)")
    parser.add_argument("--rounds", type=int, default=5, help="calls of each contender, in turns (default: 5)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch on a CPU (default: all cores)")
    parser.add_argument(
        "--output",
        type=Path,
        help=f"raw results as JSON (default: benchmarks/results/{result}-DEVICE.json)",
    )


def write_json(path: Path, results: dict[str, Any]) -> None:
    """Keep the raw results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\nraw results: {path}")


def _timed(work: Work, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def _status_bytes(key: str) -> int:
    match = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert match, f"no {key} in /proc/self/status"
    return int(match[1]) * 1024


def _cpu_name() -> str:
    with suppress(OSError):
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if match:
            return match[1]
    return platform.processor() or platform.machine()
