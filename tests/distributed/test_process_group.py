"""Ranks that cannot meet."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from hpcdistill.distributed import process_group
from hpcdistill.distributed.process_group import open_process_group
from hpcdistill.errors import UserError

pytestmark = pytest.mark.alone

CPU = torch.device("cpu")


def second_of_two(leader: str, port: int) -> Any:
    """Return the communicator of rank 1 whose leader listens at this address."""
    return cast(Any, SimpleNamespace(rank=1, size=2, allgather=lambda mine: [leader, mine], bcast=lambda _: port))


def test_a_leader_that_cannot_be_reached_is_an_error_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_group, "CONNECT_SECONDS", 1.0)
    with pytest.raises(UserError, match=r"rank 1 of a group of 2 on .* cannot connect .* set GLOO_SOCKET_IFNAME"):
        open_process_group(second_of_two("127.0.0.2", 1), CPU)


def test_the_interface_of_gloo_gives_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    assert process_group._address() == "127.0.0.1"


def test_an_interface_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nowhere0")
    with pytest.raises(UserError, match="GLOO_SOCKET_IFNAME = 'nowhere0' is no network interface"):
        open_process_group(second_of_two("127.0.0.2", 1), CPU)
