"""Reading ahead: the same batches, a cursor of those drawn, and errors where the batch would have been."""

import threading

import pytest
import torch

from hpcdistill.data import prefetch
from hpcdistill.data.batches import Batch, TrainingBatches
from hpcdistill.data.prefetch import AHEAD, Prefetch

pytestmark = pytest.mark.alone
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def every_read_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "SLOW", -1.0)
    monkeypatch.setattr(prefetch, "JUDGED", 1)


class Counted(TrainingBatches):
    """Batches that hold their number; one of them raises, one waits."""

    def __init__(self, raises_at: int = -1, waits_at: int = -1) -> None:
        self.raises_at, self.waits_at = raises_at, waits_at
        self.go_on, self.has_read, self.closed = threading.Event(), threading.Event(), False

    def __next__(self) -> Batch:
        if self.drawn == self.raises_at:
            raise RuntimeError("no more")
        if self.drawn == self.waits_at:
            self.has_read.set()
            self.go_on.wait()
        self.drawn += 1
        self.reader_state = torch.tensor(self.drawn)
        return Batch((), torch.tensor(self.drawn - 1))

    def close(self) -> None:
        self.closed = True


def test_batches_are_read_ahead_and_counted_when_they_are_drawn() -> None:
    inner = Counted(waits_at=3 + AHEAD)
    inner.go_on.set()
    with Prefetch(inner, CPU) as batches:
        batches.drawn, batches.reader_state = 3, torch.tensor(3)
        assert next(batches).target.item() == 3
        inner.has_read.wait()  # the thread goes on by itself
        assert (batches.drawn, int(batches.reader_state)) == (4, 4)
        assert [next(batches).target.item() for _ in range(20)] == [*range(4, 24)]
        assert (batches.drawn, int(batches.reader_state)) == (24, 24)
        assert inner.drawn <= 24 + AHEAD
    assert inner.closed
    assert batches._thread
    assert not batches._thread.is_alive()


def test_an_error_is_raised_after_the_batches_before_it_and_again() -> None:
    with Prefetch(Counted(raises_at=3), CPU) as batches:
        assert [next(batches).target.item() for _ in range(3)] == [0, 1, 2]
        for _ in range(2):
            with pytest.raises(RuntimeError, match="no more"):
                next(batches)
        assert batches.drawn == 3


def test_a_read_that_never_ends_does_not_keep_the_run_from_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "PATIENCE", 0.1)
    inner = Counted(waits_at=1)
    with Prefetch(inner, CPU) as batches:
        next(batches)
    assert batches._thread
    assert batches._thread.is_alive()
    assert batches._thread.daemon
    inner.go_on.set()
    batches._thread.join()


def test_nothing_is_read_before_the_first_draw() -> None:
    inner = Counted()
    with Prefetch(inner, CPU):
        pass
    assert inner.drawn == 0


def test_reads_stay_in_place_until_most_are_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "JUDGED", 9)
    monkeypatch.setattr(prefetch, "SLOW", 60.0)
    inner = Counted()
    with Prefetch(inner, CPU) as batches:
        assert [next(batches).target.item() for _ in range(20)] == [*range(20)]
        assert (inner.drawn, batches.drawn, batches._thread) == (20, 20, None)
        monkeypatch.setattr(prefetch, "SLOW", -1.0)
        assert [next(batches).target.item() for _ in range(4)] == [*range(20, 24)]
        assert batches._thread is None
        assert next(batches).target.item() == 24
        assert batches._thread
        assert [next(batches).target.item() for _ in range(9)] == [*range(25, 34)]
    assert inner.closed


def test_batches_that_were_read_in_place_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "SLOW", 60.0)
    inner = Counted()
    with Prefetch(inner, CPU) as batches:
        next(batches)
    assert inner.closed
