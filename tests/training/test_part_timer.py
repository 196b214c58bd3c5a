"""Timers of the parts of a step: the host's, and that of a GPU with events that are not its own."""

import time

import pytest

from hpcdistill.training.part_timer import GpuTimer, HostTimer, split_time

pytestmark = pytest.mark.alone


def test_the_host_adds_the_time_of_each_part(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter((1.0, 3.0, 10.0, 10.5, 20.0, 24.0))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    timer = HostTimer()
    for part in ("data", "exchange", "data"):
        with timer.time(part):
            pass
    assert timer.read() == {"data": 6.0, "exchange": 0.5}
    assert timer.read() == {}


class Event:
    """Event at a time in ms that the GPU reaches when it is told."""

    now = 0.0
    reached = 0.0

    def record(self) -> None:
        self.at = Event.now

    def query(self) -> bool:
        return self.at <= Event.reached

    def elapsed_time(self, other: "Event") -> float:
        return other.at - self.at


def test_a_gpu_is_asked_only_for_what_it_has_done() -> None:
    timer = GpuTimer(Event)
    for begin, end in ((0.0, 5.0), (20.0, 27.0), (40.0, 41.0)):
        Event.now = begin
        with timer.time("data"):
            Event.now = end
    Event.reached = 30.0
    assert timer.read() == {"data": pytest.approx(0.012)}
    assert timer.read() == {}
    Event.reached = 41.0
    assert timer.read() == {"data": pytest.approx(0.001)}


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        ({}, (0, 0, 0, 0, 8)),
        ({"data": 1.0, "averaging": 2.0}, (1, 0, 0, 2, 5)),
        ({"teachers": 12.0, "exchange": 4.0}, (0, 6, 2, 0, 0)),
    ],
)
def test_the_parts_add_up_to_the_step(measured: dict[str, float], expected: tuple[float, ...]) -> None:
    names = ("data", "teachers", "exchange", "averaging", "compute")
    assert split_time(8.0, measured) == dict(zip(names, expected, strict=True))
