"""Activation checkpointing: equal gradients, blocks that run twice, and replicas that run their own blocks once."""

import copy
from collections import Counter
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from hpcdistill.errors import UserError
from hpcdistill.training.activations import checkpoint_activations

pytestmark = pytest.mark.alone


class Block(nn.Module):
    """Residual block that counts its forward passes."""

    passes: ClassVar[Counter[int]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(4, 4), nn.Dropout(0.5)

    def forward(self, hidden: Tensor, *, scale: float) -> Tensor:
        self.passes[id(self)] += 1
        return hidden + scale * self.dropout(self.linear(hidden).tanh())


class Model(nn.Module):
    """Two lists, of which the longer one has fewer parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.ModuleList(nn.LayerNorm(1) for _ in range(3))
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, hidden: Tensor) -> Tensor:
        for block in self.blocks:
            hidden = block(hidden, scale=0.5)
        return hidden


def gradients(model: nn.Module, inputs: Tensor) -> list[Tensor]:
    torch.manual_seed(1)  # of dropout
    model(inputs).square().sum().backward()
    return [parameter.grad for parameter in model.blocks.parameters()]


def test_gradients_are_equal_and_replicas_run_their_own_blocks_once() -> None:
    plain, inputs = Model(), torch.randn(3, 4)
    model = copy.deepcopy(plain)
    checkpoint_activations(model)
    assert model.state_dict().keys() == plain.state_dict().keys()
    replica = copy.deepcopy(model).eval()
    Block.passes.clear()
    for one, other in zip(gradients(model, inputs), gradients(plain, inputs), strict=True):
        assert torch.equal(one, other)
    assert [Block.passes[id(block)] for block in (*model.blocks, *plain.blocks)] == [2, 2, 1, 1]
    nn.init.zeros_(replica.blocks[0].linear.weight)
    with torch.no_grad():
        assert not torch.equal(replica(inputs), model.eval()(inputs))
    assert [Block.passes[id(block)] for block in (*model.blocks, *replica.blocks)] == [3, 3, 1, 1]


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(UserError, match=r"blocks in an nn.ModuleList, which Sequential does not have; put them"):
        checkpoint_activations(nn.Sequential(nn.Linear(2, 2)))


def test_a_hugging_face_model_does_it_itself() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    model: Any = GPT2LMHeadModel(config).train()
    checkpoint_activations(model)
    passes: list[bool] = []
    model.transformer.h[1].ln_1.register_forward_pre_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    replica = copy.deepcopy(model).eval().requires_grad_(False)
    tokens = torch.arange(8)[None]
    model(tokens, use_cache=False).logits.sum().backward()
    assert len(passes) == 2
    with torch.no_grad():
        replica(tokens)
    assert len(passes) == 3
