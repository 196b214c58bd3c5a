"""FLOPs of models, peaks of devices, and what a group does in a second."""

import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hpcdistill.config.train import TrainConfig
from hpcdistill.data.batches import Batch
from hpcdistill.distributed.groups import Groups
from hpcdistill.models.lstm import LSTMLanguageModel
from hpcdistill.tasks.objective import Softmax
from hpcdistill.training.throughput import Throughput, forward_flops, peak_flops

B, T, V, D = 4, 6, 11, 8


class Attention(nn.Module):
    """Causal attention with one head, and a normalization that a batch of one item would break while training."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.inputs, self.head = nn.Embedding(V, D), nn.Linear(D, 3 * D), nn.Linear(D, V)
        self.norm = nn.BatchNorm1d(D)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.inputs(self.norm(self.embedding(tokens).mT).mT).chunk(3, -1)
        return self.head(nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True))


def of(model: nn.Module) -> float:
    tokens = torch.randint(V, (B, T))
    return forward_flops(Softmax(V), model, Batch((tokens,), tokens))


@pytest.mark.alone
def test_flops_of_a_token() -> None:
    lstm = LSTMLanguageModel(V, 8, 2, 0, 0.5)
    assert of(lstm) == 2 * (2 * 4 * 2 * 8 * 8 + V * 8)
    assert of(Attention()) == 2 * (3 * D * D + 2 * T * D + D * V)


@pytest.mark.alone
def test_counting_changes_nothing() -> None:
    model = nn.Sequential(Attention(), nn.Dropout())
    model[0].register_forward_hook(lambda *_: (torch.rand(1), None)[1])  # a random number in validation, too
    before, state = {name: tensor.clone() for name, tensor in model.state_dict().items()}, torch.get_rng_state()
    tokens = torch.zeros(B, T, dtype=torch.int64)
    assert forward_flops(Softmax(V), model, Batch((tokens,), tokens)) > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.alone
@pytest.mark.parametrize(
    ("name", "settings", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", {}, 19.5e12),
        ("NVIDIA A100-SXM4-80GB", {"tf32": True}, 156e12),
        ("NVIDIA A100 80GB PCIe", {"precision": "bf16"}, 312e12),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", {}, None),
        ("NVIDIA H100 80GB HBM3", {"precision": "bf16-weights", "tf32": True}, 989e12),
        ("NVIDIA H100 PCIe", {"precision": "bf16"}, 756e12),
        ("NVIDIA H200 NVL", {"precision": "bf16"}, 835e12),
        ("Tesla V100-SXM2-32GB", {"precision": "bf16"}, None),
        ("AMD Instinct MI250X", {}, 47.9e12),
        ("NVIDIA GeForce RTX 3060", {}, None),
    ],
)
def test_peaks_by_the_names_of_devices(name: str, settings: dict[str, Any], peak: float | None) -> None:
    assert peak_flops(name, TrainConfig(**settings)) == (None if peak is None else pytest.approx(peak))


def test_a_group_counts_the_items_of_all_ranks(groups: Groups, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter((10.0, 14.0, 14.0, 20.0, 25.0, 25.0))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    tokens = torch.randint(V, (B, T))
    throughput = Throughput(TrainConfig(), groups, Softmax(V), Attention())
    for _ in range(3):
        throughput.count(Batch((tokens,), tokens))
    assert throughput.measure(groups.size * throughput.items) == {  # a CPU has no peak
        "items_per_second": groups.size * 3 * B * T / 4.0
    }
    throughput.restart()
    throughput.count(Batch((tokens,), tokens))
    throughput._peak, throughput._flops = 1000.0, 50.0
    rate = groups.size * B * T / 5.0
    assert throughput.measure(groups.size * throughput.items) == {
        "items_per_second": rate,
        "mfu": pytest.approx(rate * 50 / (groups.size * 1000)),
    }


@pytest.mark.alone
def test_a_model_that_cannot_be_counted_costs_the_utilization_only(capsys: pytest.CaptureFixture[str]) -> None:
    tokens = torch.randint(V, (B, T))
    throughput = Throughput(TrainConfig(), Groups.single(), Softmax(V), nn.Linear(T, V))  # takes no integers
    throughput._peak = 1000.0
    for _ in range(2):
        throughput.count(Batch((tokens,), tokens))
    assert throughput.measure(throughput.items).keys() == {"items_per_second"}
    assert capsys.readouterr().err.count("the metrics have no mfu") == 1
