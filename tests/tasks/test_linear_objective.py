"""Softmax fused with the model's head: its losses and gradients are those of the plain softmax."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from hpcdistill.errors import UserError
from hpcdistill.models.lstm import LSTMLanguageModel
from hpcdistill.models.resnet import ResNet
from hpcdistill.models.transformer import Transformer
from hpcdistill.tasks.linear_objective import FusedSoftmax
from hpcdistill.tasks.objective import Softmax, TrainingObjective

TOKENS = torch.arange(30).view(3, 10) % 17


def model_of(seed: int, width: int = 8) -> nn.Module:
    torch.manual_seed(seed)
    return LSTMLanguageModel(17, width, layers=1, projection=0, dropout=0.0).double()


def transformer_of(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return Transformer(17, 8, layers=1, heads=2, kv_heads=1, feed_forward=16, dropout=0.0).double()


def learned(
    objective: TrainingObjective[Any], model: nn.Module, teachers: list[nn.Module]
) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """Return loss and gradients of one batch, with a constant prediction as one more teacher."""
    model.zero_grad()
    with torch.no_grad():
        advice = [objective.outputs(teacher, TOKENS) for teacher in teachers]
        advice.append(objective.constant_prediction(torch.linspace(-1, 1, 17).double(), TOKENS))
    loss = objective.loss(objective.outputs(model, TOKENS), TOKENS.flip(0), advice, 0.7, 2.0)
    loss.backward()
    return loss.detach(), [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("make", [model_of, transformer_of])
def test_losses_and_gradients_are_those_of_logits(make: Callable[[int], nn.Module]) -> None:
    """A transformer's head is its embedding too."""
    model, teachers = make(0), [make(1).requires_grad_(False), model_of(2, width=5).requires_grad_(False)]
    loss, gradients = learned(Softmax(17), model, teachers)
    fused_loss, fused_gradients = learned(FusedSoftmax(17, model), model, teachers)
    torch.testing.assert_close(fused_loss, loss)
    torch.testing.assert_close(fused_gradients, gradients)


def test_the_cross_entropy_is_that_of_logits() -> None:
    model = model_of(0)
    plain, fused = Softmax(17), FusedSoftmax(17, model)
    losses = [one.cross_entropy(one.outputs(model, TOKENS), TOKENS) for one in (plain, fused)]
    torch.testing.assert_close(losses[1].float(), losses[0])


def test_models_of_images_have_what_it_takes() -> None:
    model = ResNet(18, 5, 1, small=True).eval()
    images = torch.randn(2, 1, 8, 8)
    states, weight, bias = FusedSoftmax(5, model).outputs(model, images)
    torch.testing.assert_close(states @ weight.t() + bias, model(images))


@pytest.mark.parametrize("model", [nn.Linear(3, 3), nn.Sequential()])
def test_a_model_without_a_head_is_refused(model: nn.Module) -> None:
    with pytest.raises(
        UserError, match=f"a method `hidden` and an nn.Linear `head`, which {type(model).__name__} does not"
    ):
        FusedSoftmax(3, model)
