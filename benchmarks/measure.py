"""Measurements that benchmarks share: contenders take turns, so that noise of the machine affects all alike.

Calls on a GPU are timed by device events, with an L2 cache that holds nothing of their data (`device_events.py`).
"""

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

from device_events import EventTimer, Work, l2_bytes


def sweep(
    name: str,
    options: argparse.Namespace,
    header: str,
    settings: Iterable[Any],
    measure: Callable[[Any, torch.device], dict[str, Any]],
    line: Callable[[dict[str, Any]], str],
) -> None:
    """Measure one setting after another, print a line of the table for each, and write all results as JSON.

    Args:
        name: of the file of results, without the device.
        options: those of `add_common_options`.
        header: first lines of the table.
        settings: what to measure.
        measure: returns the results of a setting, as JSON values by name.
        line: returns a setting's line of the table, from its results.
    """
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    torch._inductor.config.compile_threads = 1  # no worker processes beside what is measured
    print(f"{machine(device)}\n\n{header}")
    results = []
    for setting in settings:
        results.append(measure(setting, device))
        print(line(results[-1]), flush=True)
    output = options.output or Path(__file__).parent / "results" / f"{name}-{device.type}.json"
    write_json(output, {"machine": machine(device), "results": results})


def in_turns(works: dict[str, Work], device: torch.device, rounds: int) -> dict[str, list[float]]:
    """Call all `works` in turn, `rounds` times after a first call to warm up; return the seconds of each call."""
    for work in works.values():
        work()
    if device.type == "cuda":
        return EventTimer(device).seconds(works, rounds)
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            seconds[name].append(_timed(work))
    return seconds


def ratio(seconds: dict[str, list[float]], slower: str, faster: str) -> float:
    """Return the time of `slower` divided by that of `faster`: the median over the rounds."""
    return statistics.median(s / f for s, f in zip(seconds[slower], seconds[faster], strict=True))


def spread(seconds: list[float]) -> float:
    """Return half the interquartile range, as a fraction of the median; 0 for a single call."""
    if len(seconds) < 2:
        return 0.0
    first, median, third = statistics.quantiles(seconds, n=4, method="inclusive")
    return (third - first) / 2 / median


def ends_all_ranks(main: Work) -> Work:
    """Wrap `main` so that an error on one rank ends all ranks; the others would wait for it forever."""

    @wraps(main)
    def guarded() -> None:
        from hpcdistill.distributed.launch import end_job  # here: some benchmarks need no MPI

        try:
            main()
        except (Exception, KeyboardInterrupt) as error:
            end_job(error)

    return guarded


def peak_extra_bytes(work: Work, device: torch.device) -> int:
    """Return the peak memory of `work`, in bytes beyond what was in use before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with suppress(AttributeError):  # not glibc, which keeps freed memory and would hide its reuse
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to what is in use
    before = _status_bytes("VmHWM")
    work()
    return _status_bytes("VmHWM") - before


def machine(device: torch.device) -> dict[str, Any]:
    """Return the facts of machine and software that a measurement depends on."""
    facts: dict[str, Any] = {"torch": torch.__version__, "python": platform.python_version()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {"device": properties.name, "cuda": torch.version.cuda, "l2_bytes": l2_bytes(device)}
        return facts | {"multiprocessors": properties.multi_processor_count}
    return facts | {"device": _cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser that prints `description` with its line breaks, and refuses abbreviated options."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )


def add_common_options(parser: argparse.ArgumentParser, result: str) -> None:
    """Add the options that benchmarks share; results go to `result`-DEVICE.json."""
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="where to run (default: cpu)")
    parser.add_argument("--rounds", type=int, default=5, help="calls of each contender, in turns (default: 5)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch on a CPU (default: all cores)")
    parser.add_argument(
        "--output",
        type=Path,
        help=f"raw results as JSON (default: benchmarks/results/{result}-DEVICE.json)",
    )


def write_json(path: Path, results: dict[str, Any]) -> None:
    """Write the raw results, and print where they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\nraw results: {path}")


def _timed(work: Work) -> float:
    begin = time.perf_counter()
    work()
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
