"""The transport and the payload of docs/extension.md work as they stand there."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hpcdistill import Codistillation
from hpcdistill.distributed.communicator import Communicator
from hpcdistill.distributed.groups import Groups
from hpcdistill.exchange import registry
from hpcdistill.exchange.registry import open_exchange
from hpcdistill.exchange.weights import WeightPayload
from repository import ROOT


@pytest.fixture(scope="module")
def page() -> Iterator[dict[str, Any]]:
    """Run the page's snippets on transports and payloads; return their names."""
    text = (ROOT / "docs" / "extension.md").read_text()
    names: dict[str, Any] = {}
    for title in ("A transport", "What is exchanged"):
        snippet = text.split(f"\n## {title}\n")[1].split("```python\n")[1].split("```")[0]
        exec(compile(snippet, "docs/extension.md", "exec"), names)
    yield names
    del registry._openers["mailbox"]


@pytest.mark.usefixtures("page")
def test_groups_learn_from_each_other_through_the_transport_of_the_page(
    groups: Groups, world: Communicator, tmp_path: Path
) -> None:
    folder = world.bcast(tmp_path)
    torch.manual_seed(groups.group)
    model = nn.Linear(3, 2)
    with Codistillation(model, groups, interval=1, burn_in=0, transport="mailbox", folder=folder) as peers:
        predictions: list[torch.Tensor] = []
        while len(predictions) < groups.count - 1:  # bounded by the test's timeout
            peers.step()
            predictions = list(peers.predict(torch.eye(3)))
    for peer, prediction in zip(peers.staleness, predictions, strict=True):
        torch.manual_seed(peer)
        assert torch.equal(prediction, nn.Linear(3, 2)(torch.eye(3)))


@pytest.mark.usefixtures("page")
def test_a_snapshot_arrives_once_and_only_from_a_payload_that_fits(world: Communicator, tmp_path: Path) -> None:
    folder = world.bcast(tmp_path)
    exchanges = []
    for group, size in enumerate((3, 3, 4)):
        member = Groups.alone(world, group, 3, torch.device("cpu"))
        exchanges.append(open_exchange("mailbox", member, WeightPayload(nn.Linear(size, 2)), 2, folder))
    reader, *_ = exchanges
    reader.set_peers([1, 2])
    for exchange in exchanges:
        exchange.publish(5)
    world.Barrier()
    assert [(snapshot.peer, snapshot.step) for snapshot in reader.collect()] == [(1, 5)]
    assert list(reader.collect()) == []


@pytest.mark.parametrize("size", [1, 3])
def test_the_payload_of_the_page_restores_predictions_from_any_number_of_shards(
    size: int, page: dict[str, Any]
) -> None:
    model, inputs = nn.Linear(3, 5), torch.randn(7, 3)
    payload = page["PredictionPayload"](model, inputs, 5)
    shards = [torch.zeros(payload.nbytes(rank, size), dtype=torch.uint8) for rank in range(size)]
    for rank, shard in enumerate(shards):
        payload.encode(rank, size, shard)
    assert torch.allclose(payload.predictions(shards), model(inputs))


def test_windows_carry_the_payload_of_the_page(groups: Groups, page: dict[str, Any]) -> None:
    torch.manual_seed(groups.group)
    model, inputs = nn.Linear(3, 5), torch.eye(3)
    payload = page["PredictionPayload"](model, inputs, 5)
    with open_exchange("window", groups, payload, degree=1) as exchange:
        peer = groups.peers[0]
        exchange.set_peers([peer])
        exchange.publish(1)
        while not (snapshots := list(exchange.collect())):  # bounded by the test's timeout
            time.sleep(1e-3)
        predictions = payload.predictions(snapshots[0].shards)
    torch.manual_seed(peer)
    assert torch.allclose(predictions, nn.Linear(3, 5)(inputs))
