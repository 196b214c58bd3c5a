"""Ensemble of all groups' models on a sample of the validation data, by any number of ranks."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hpcdistill.data.batches import IGNORED, Batch
from hpcdistill.distributed.communicator import Communicator
from hpcdistill.distributed.groups import Groups
from hpcdistill.tasks.linear_objective import FusedSoftmax
from hpcdistill.tasks.objective import Binary, Softmax
from hpcdistill.training import ensemble
from hpcdistill.training.ensemble import Ensemble, affordable, choose

CLASSES, TIME = 5, 3


class Linear(nn.Module):
    """Classifier of each item in a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, CLASSES)

    def hidden(self, inputs: Tensor) -> Tensor:
        return inputs.tanh()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.hidden(inputs))


@pytest.fixture
def alone(world: Communicator) -> Groups:
    """Make all ranks one group."""
    return Groups.split(world, (world.size,), torch.device("cpu"))


def assert_metrics(found: dict[str, Any], probabilities: list[Tensor]) -> None:
    """Compare with the probabilities of the targets that each model predicts, [number]."""
    losses = [-one.log().mean().item() for one in probabilities]
    together = -torch.stack(probabilities).mean(0).log().mean().item()
    assert found["members_loss"] == pytest.approx(losses, rel=1e-5)
    assert found["ensemble_loss"] == pytest.approx(together, rel=1e-5)
    assert found["ensemble_gap"] == pytest.approx(sum(losses) / len(losses) - together, rel=1e-4)


@pytest.mark.parametrize("fused", [False, True])
def test_the_mean_of_probabilities_of_classes(fused: bool, alone: Groups, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check three models on all ranks' targets that count, some logits at a time."""
    monkeypatch.setattr(ensemble, "TARGETS", 4)
    torch.manual_seed(0)
    models = [Linear() for _ in range(3)]
    inputs = torch.randn(alone.size, 2, 7, TIME, 4)  # of two batches of each rank
    targets = torch.randint(CLASSES, inputs.shape[:-1])
    targets[:, :, 2, 1] = IGNORED
    objective: Any = FusedSoftmax(CLASSES, models[0]) if fused else Softmax(CLASSES)
    measured = Ensemble(objective, Softmax(CLASSES), {5: models[2], 1: models[1]})
    with torch.no_grad():
        for batch in map(Batch, zip(inputs[alone.rank], strict=True), targets[alone.rank]):
            measured.add(objective.outputs(models[0], *batch.inputs), batch, examples=5)
        inputs, targets = inputs[:, :, :5], targets[:, :, :5]
        counted = targets != IGNORED
        chosen = targets[counted].unsqueeze(-1)
        expected = [model(inputs)[counted].softmax(-1).gather(-1, chosen).squeeze(-1) for model in models]
    assert_metrics(measured.metrics(alone), expected)


def test_the_mean_of_probabilities_of_binary_labels(alone: Groups) -> None:
    torch.manual_seed(0)
    inputs, labels = torch.randn(alone.size, 20), torch.randint(2, (alone.size, 20)).float()
    mine = Batch((inputs[alone.rank],), labels[alone.rank])
    measured = Ensemble(Binary(), Binary(), {1: nn.Tanh()})
    measured.add(mine.inputs[0], mine, 20)
    probabilities = [inputs.sigmoid(), inputs.tanh().sigmoid()]
    assert_metrics(
        measured.metrics(alone), [torch.where(labels > 0, each, 1 - each).flatten() for each in probabilities]
    )


@pytest.mark.alone
def test_what_has_no_ensemble() -> None:
    one = Batch((torch.tensor([math.nan]),), torch.ones(1))
    for models, batches in (({}, [one]), ({1: nn.Tanh()}, []), ({1: nn.Tanh()}, [one])):
        measured = Ensemble(Binary(), Binary(), models)
        for batch in batches:
            measured.add(batch.inputs[0], batch, 1)
        assert measured.metrics(Groups.single()) == {}


@pytest.mark.alone
@pytest.mark.parametrize(
    ("batches", "examples", "sampled"),
    [
        (0, 5, ({0}, 5)),
        (3, 0, ({0}, 1)),
        (3, 7, ({0}, 7)),
        (3, 9, ({0, 1}, 4)),
        (3, 100, ({0, 1, 2}, 33)),
        (80, 100, ({0, 10, 20, 30, 40, 50, 60, 70}, 12)),
    ],
)
def test_a_sample_has_few_examples_from_everywhere(batches: int, examples: int, sampled: tuple[set[int], int]) -> None:
    assert choose(batches, examples) == sampled


@pytest.mark.parametrize(("validate_every", "examples"), [(1000, 48), (10, 1)])
def test_peers_predict_for_a_thousandth_of_what_the_training_costs(validate_every: int, examples: int) -> None:
    """Count 1000 steps of 64 examples as 192,000 forward passes, of which each of 4 ranks may add 48."""
    config: Any = SimpleNamespace(
        train=SimpleNamespace(validate_every=validate_every), data=SimpleNamespace(batch_size=64)
    )
    assert affordable(config, 4) == examples
