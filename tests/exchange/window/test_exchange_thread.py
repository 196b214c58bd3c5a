"""The communication thread of an exchange on a GPU, without a GPU."""

import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from hpcdistill.exchange.traffic import TrafficStats
from hpcdistill.exchange.window.exchange import WindowExchange

pytestmark = pytest.mark.alone


@pytest.mark.parametrize("device", [torch.device("cuda", 1), torch.device("cpu")])
def test_the_thread_chooses_its_gpu_first(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that the thread sets the group's device before it asks for events: these would else be those of GPU 0."""
    calls: list[Any] = []
    closing = threading.Event()

    def announce() -> bool:
        calls.append("announce")
        closing.set()
        return False

    exchange = SimpleNamespace(
        _payload=SimpleNamespace(device=device),
        _readers=[],
        _closing=closing,
        _writer=SimpleNamespace(announce=announce),
        _comm=SimpleNamespace(Iprobe=lambda source: None),
        traffic=TrafficStats(),
    )
    monkeypatch.setattr(torch.cuda, "set_device", calls.append)
    WindowExchange._communicate(cast(WindowExchange, exchange))
    assert calls == ([device, "announce"] if device.type == "cuda" else ["announce"])
