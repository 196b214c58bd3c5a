"""Softmax fused with the model's head: its losses and gradients are those of the plain softmax."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig, BertLMHeadModel

from hpcdistill.errors import UserError
from hpcdistill.models.lstm import LSTMLanguageModel
from hpcdistill.models.resnet import ResNet
from hpcdistill.models.transformer import Transformer
from hpcdistill.tasks.linear_objective import FusedSoftmax
from hpcdistill.tasks.objective import Softmax, TrainingObjective

pytestmark = pytest.mark.alone

TOKENS = torch.arange(30).view(3, 10) % 17


def model_of(seed: int, width: int = 8) -> nn.Module:
    torch.manual_seed(seed)
    return LSTMLanguageModel(17, width, layers=1, projection=0, dropout=0.0).double()


def transformer_of(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return Transformer(17, 8, layers=1, heads=2, kv_heads=1, feed_forward=16, dropout=0.0).double()


def hugging_face(family: str, seed: int, **values: Any) -> nn.Module:
    """Return a small causal language model with weights that make large logits."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        family,
        vocab_size=17,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
        **values,
    )
    model = AutoModelForCausalLM.from_config(config).double().eval()
    model.get_output_embeddings().weight.data.mul_(200)
    return model


def gemma_of(seed: int) -> nn.Module:
    """Return a model with a soft cap."""
    return hugging_face("gemma2", seed, final_logit_softcapping=3.0)


def cohere_of(seed: int) -> nn.Module:
    """Return a model that scales its logits."""
    return hugging_face("cohere", seed, logit_scale=0.25)


def granite_of(seed: int) -> nn.Module:
    """Return a model that divides its logits."""
    return hugging_face("granite", seed, logits_scaling=3.0)


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


@pytest.mark.parametrize("make", [model_of, transformer_of, gemma_of, cohere_of, granite_of])
def test_losses_and_gradients_are_those_of_logits(make: Callable[[int], nn.Module]) -> None:
    """The heads of some are their embeddings too; each may learn from a model of another kind."""
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
    torch.testing.assert_close(FusedSoftmax(5, model).outputs(model, images).logits(), model(images))


@pytest.mark.parametrize("model", [nn.Linear(3, 3), nn.Sequential()])
def test_a_model_without_a_head_is_refused(model: nn.Module) -> None:
    with pytest.raises(
        UserError, match=f"a method `hidden` and an nn.Linear `head`, or .*; {type(model).__name__} is neither"
    ):
        FusedSoftmax(3, model)


class Capped(LSTMLanguageModel):
    """Model with a soft cap that its `head` does not know of."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return 30 * (super().forward(tokens) / 30).tanh()


def transforming() -> nn.Module:
    """Return a model that has another layer between its last hidden states and its head."""
    config = BertConfig(
        vocab_size=17, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, is_decoder=True
    )
    return BertLMHeadModel(config)


@pytest.mark.parametrize("make", [lambda: Capped(17, 8, 1, 0, 0.0), transforming])
def test_a_model_whose_logits_are_not_those_of_its_head_is_refused(make: Callable[[], nn.Module]) -> None:
    model = make()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(UserError, match=f"the logits of {type(model).__name__} are not those of its head"):
        FusedSoftmax(17, model, (TOKENS[:1],))
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert model.training


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_rounding_is_no_reason_to_refuse_a_model(precision: torch.dtype) -> None:
    for model in (gemma_of(0), transformer_of(0), model_of(0)):
        FusedSoftmax(17, model.to(precision), (TOKENS[:1],))
