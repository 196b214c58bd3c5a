"""Times and launches on a GPU: device events around single calls, whose data the L2 cache no longer holds."""

import math
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

Work = Callable[[], Any]


class EventTimer:
    """Timer of calls on one GPU.

    Before each call, a buffer of four times the L2 cache is overwritten, as often as takes longer than the host needs
    to issue the call: so the call finds nothing in the cache, and its time is that of the device, not that of Python.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffer = torch.empty(4 * l2_bytes(device), dtype=torch.uint8, device=device)
        self._flush_seconds = min(self._timed(self._buffer.zero_)[0]() for _ in range(5))

    def seconds(self, works: dict[str, Work], rounds: int) -> dict[str, list[float]]:
        """Call all `works` in turn, `rounds` times; return the seconds of each call on the device, by name.

        The calls follow each other without a synchronization of the host.
        """
        flushes = {name: self._flushes(work) for name, work in works.items()}
        readers: dict[str, list[Callable[[], float]]] = {name: [] for name in works}
        for _ in range(rounds):
            for name, work in works.items():
                for _ in range(flushes[name]):
                    self._buffer.zero_()
                readers[name].append(self._timed(work)[0])
        return {name: [read() for read in each] for name, each in readers.items()}

    def _flushes(self, work: Work) -> int:
        """Return how often the buffer is overwritten while the host issues `work`."""
        torch.cuda.synchronize(self._device)
        _, host_seconds = self._timed(work)
        return 1 + min(100, math.ceil(1.5 * host_seconds / self._flush_seconds))

    def _timed(self, work: Work) -> tuple[Callable[[], float], float]:
        """Issue `work`; return a function that waits for it and returns its seconds, and the seconds of the host."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start = time.perf_counter()
        begin.record()
        work()
        end.record()
        host_seconds = time.perf_counter() - start

        def read() -> float:
            end.synchronize()
            return float(begin.elapsed_time(end)) / 1000

        return read, host_seconds


def host_seconds(work: Work, device: torch.device, calls: int = 20) -> float:
    """Return the seconds that the host takes to issue a call of `work`, the least of several."""
    best = math.inf
    for _ in range(calls):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def launches(work: Work, device: torch.device) -> Counter[str]:
    """Return how often one call of `work` launches each kernel, by the kernel's name; copies and fills do not count."""
    torch.cuda.synchronize(device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize(device)
    on_device = (event.name for event in profiler.events() if event.device_type == torch.profiler.DeviceType.CUDA)
    return Counter(name for name in on_device if not name.startswith(("Memcpy", "Memset")))


def l2_bytes(device: torch.device) -> int:
    """Return the size of the L2 cache of a GPU."""
    return int(torch.cuda.get_device_properties(device).L2_cache_size)
