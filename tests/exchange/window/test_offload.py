"""Copies between a GPU and a window, with a CUDA that records what is asked of it, in the memory of the host."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from hpcdistill.exchange.window import offload
from hpcdistill.exchange.window.offload import Offload, host_memory

pytestmark = pytest.mark.alone

GPU = torch.device("cuda", 3)
NBYTES = 64


class Cuda:
    """Functions of `torch.cuda` that copies need; copies are complete when `done` is set.

    Args:
        refused: CUDA's answer to requests to lock pages, by length in bytes; 0 for success is the default.
    """

    def __init__(self, refused: dict[int, int]) -> None:
        self.refused = refused
        self.locked: dict[int, int] = {}
        self.calls: list[tuple[str, Any]] = []
        self.done = False

    def cudart(self) -> Cuda:
        return self

    def cudaHostRegister(self, address: int, nbytes: int, flags: int) -> int:  # noqa: N802 - CUDA's name
        if nbytes not in self.refused:
            self.locked[address] = nbytes
        return self.refused.get(nbytes, 0)

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802 - CUDA's name
        del self.locked[address]
        return 0

    def check_error(self, code: int) -> None:
        if code:
            raise RuntimeError(f"invalid argument ({code})")

    def Stream(self, device: torch.device) -> Cuda:  # noqa: N802 - torch's name
        self.calls.append(("stream of", device))
        return self

    def Event(self) -> Cuda:  # noqa: N802 - torch's name
        return self

    def current_stream(self, device: torch.device) -> str:
        return f"current stream of {device}"

    @contextmanager
    def stream(self, stream: Cuda) -> Iterator[None]:
        yield

    def wait_stream(self, other: str) -> None:
        self.calls.append(("wait for", other))

    def record(self) -> None:
        self.done = False

    def query(self) -> bool:
        return self.done

    def synchronize(self) -> None:
        self.done = True


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    fake = Cuda({})
    monkeypatch.setattr(torch, "cuda", fake)
    empty, zeros = torch.empty, torch.zeros

    def on_host(make: Any) -> Any:
        def made(*args: Any, device: torch.device, **options: Any) -> torch.Tensor:
            fake.calls.append(("memory of", device))
            return make(*args, **options)

        return made

    monkeypatch.setattr(offload.torch, "empty", on_host(empty))
    monkeypatch.setattr(offload.torch, "zeros", on_host(zeros))
    return fake


def sent(copier: Offload, cuda: Cuda, slot: torch.Tensor, value: int) -> None:
    """Copy `value` to the slot, and check that it's there once `finish` says so."""
    copier.staging.fill_(value)
    copier.begin(slot)
    assert not copier.finish()
    cuda.done = True
    assert copier.finish()
    assert (slot == value).all()


def window_memory() -> torch.Tensor:
    return torch.from_numpy(host_memory(5 * NBYTES, torch.device("cpu")))


def test_a_window_is_locked_and_copied_to(cuda: Cuda, caplog: pytest.LogCaptureFixture) -> None:
    memory = window_memory()
    copier = Offload(memory, NBYTES, GPU)
    assert cuda.locked == {memory.data_ptr(): memory.nbytes}
    for place in (1, 3):
        sent(copier, cuda, memory.split(NBYTES)[place], place)
    assert cuda.calls == [("stream of", GPU), ("memory of", GPU), *[("wait for", f"current stream of {GPU}")] * 2]
    copier.free()
    assert not cuda.locked
    assert not caplog.records


def test_a_window_that_cannot_be_locked_gets_a_copy(cuda: Cuda, caplog: pytest.LogCaptureFixture) -> None:
    """Check that a copy goes through memory that is locked, arrives in the window, and is warned of once."""
    memory = window_memory()
    cuda.refused = {memory.nbytes: 1}
    with caplog.at_level(logging.WARNING):
        copier = Offload(memory, NBYTES, GPU)
        for place in (1, 3):
            sent(copier, cuda, memory.split(NBYTES)[place], place)
    (message,) = caplog.messages
    assert "cannot lock the pages of the exchange's window (invalid argument (1))" in message
    assert list(cuda.locked.values()) == [NBYTES]
    copier.free()
    del copier
    assert not cuda.locked


def test_the_error_of_a_refusal_is_taken_away(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that a kernel is launched after it, as CUDA reports an error again at the next launch."""
    launched = []

    def zeros(*_: Any, device: torch.device) -> None:
        launched.append(device)
        raise RuntimeError("CUDA error: invalid argument")

    monkeypatch.setattr(offload.torch, "zeros", zeros)
    memory = window_memory()
    cuda.refused = {memory.nbytes: 1}
    Offload(memory, NBYTES, GPU)
    assert launched == [GPU]


def test_memory_for_a_gpu_is_locked_while_it_lives(cuda: Cuda) -> None:
    memory = host_memory(NBYTES, GPU)
    assert cuda.locked == {memory.ctypes.data: NBYTES}
    view = torch.from_numpy(memory)[3:]
    del memory
    assert cuda.locked  # the view reads it
    del view
    assert not cuda.locked
    host_memory(NBYTES, torch.device("cpu"))
    host_memory(0, GPU)
    assert not cuda.locked


def test_a_refusal_of_memory_for_a_gpu_is_a_warning(cuda: Cuda, caplog: pytest.LogCaptureFixture) -> None:
    cuda.refused = {NBYTES: 2}
    with caplog.at_level(logging.WARNING):
        assert host_memory(NBYTES, GPU).nbytes == NBYTES
    assert "cannot lock the pages of 64 bytes (invalid argument (2))" in caplog.text
