"""A Hugging Face model, whose forward returns an object with `logits`, trained by `hpcdistill train`.

mpirun -np 2 python -m hpcdistill train examples/hugging_face.toml --data.path=data.h5
"""

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from hpcdistill.data.tokens.store import TokenStore


class Logits(nn.Module):
    """Wrapper of a Hugging Face model that takes tokens and returns logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits [batch, time, V] for int64 tokens [batch, time]."""
        logits: torch.Tensor = self.model(input_ids=tokens).logits
        return logits


def gpt2(store: TokenStore) -> nn.Module:
    """Return a small GPT-2 with random weights for the vocabulary of `store`."""
    return Logits(
        GPT2LMHeadModel(GPT2Config(vocab_size=store.vocabulary, n_positions=512, n_embd=128, n_layer=2, n_head=4))
    )
