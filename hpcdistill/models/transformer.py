"""Decoder-only transformer, the language model of today."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional

from hpcdistill.config.section import MODEL_NAME, ModelConfig
from hpcdistill.data.datasets.factory import FactoryData
from hpcdistill.data.tokens.store import TokenStore
from hpcdistill.models.registry import register

HEAD_SIZE = 64
MULTIPLE = 64  # of the feed-forward layer's default width: matrix products are fastest at such sizes
ROTARY_BASE = 10_000.0
EPSILON = 1e-6
INITIAL_STD = 0.02


class TransformerConfig(ModelConfig):
    """Transformer language model."""

    name: Literal["transformer"] = Field(description=MODEL_NAME)
    hidden: PositiveInt = 128
    """Width of the embedding and of each block."""
    layers: PositiveInt = 2
    """Number of blocks."""
    heads: PositiveInt | None = None
    """Number of attention heads of a 'transformer', which share out `hidden`. Without it, one for every 64 units."""
    kv_heads: PositiveInt | None = None
    """Number of heads that have keys and values of their own (grouped-query attention); a divisor of `heads`. Without
    it, `heads`."""
    feed_forward: PositiveInt | None = None
    """Units of each feed-forward layer. Without it, 8/3 of `hidden`, rounded up to a multiple of 64."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Fraction of units dropped after the embedding, and of what each layer adds."""

    @model_validator(mode="after")
    def _check_heads(self) -> TransformerConfig:
        heads, kv_heads, _ = self.sizes()
        if self.hidden % (2 * heads):
            raise ValueError(
                f"model.hidden = {self.hidden} does not split into an even number of units for each of model.heads = "
                f"{heads}; use a multiple of {2 * heads}, or other --model.heads"
            )
        if heads % kv_heads:
            raise ValueError(
                f"model.kv_heads = {kv_heads} does not divide model.heads = {heads}; use a divisor, so that "
                "each is shared by equally many"
            )
        return self

    def sizes(self) -> tuple[int, int, int]:
        """Return heads, heads with keys and values, and feed-forward units, with defaults filled in."""
        heads = self.heads or max(1, self.hidden // HEAD_SIZE)
        eight_thirds = -(-8 * self.hidden // (3 * MULTIPLE)) * MULTIPLE
        return heads, self.kv_heads or heads, self.feed_forward or eight_thirds


class Transformer(nn.Module):
    """Language model of pre-normalized blocks: attention with rotary positions, then a gated feed-forward layer.

    RMSNorm (arXiv 1910.07467), rotary positions (arXiv 2104.09864), SwiGLU (arXiv 2002.05202), grouped-query attention
    (arXiv 2305.13245); no biases. The head and the embedding are the same matrix, and so one parameter. Weights are
    drawn as in GPT-2: with standard deviation 0.02, those of the last matrix of a layer with 0.02/√(2·layers).

    Sequences may have any length; attention sees all tokens up to its own.

    Args:
        vocabulary: number of token values, V.
        hidden: width of the embedding and of each block.
        layers: number of blocks.
        heads: number of attention heads; an even number of units for each.
        kv_heads: number of heads with keys and values of their own; a divisor of `heads`.
        feed_forward: units of each feed-forward layer.
        dropout: fraction of units dropped after the embedding, and of what each layer adds.
    """

    def __init__(
        self, vocabulary: int, hidden: int, layers: int, heads: int, kv_heads: int, feed_forward: int, dropout: float
    ) -> None:
        super().__init__()
        self.head_size = hidden // heads
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(hidden, heads, kv_heads, feed_forward, dropout) for _ in range(layers))
        self.norm = nn.RMSNorm(hidden, EPSILON)
        self.head = nn.Linear(hidden, vocabulary, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                ends_layer = name.endswith(("attention.output.weight", "feed_forward.down.weight"))
                nn.init.normal_(parameter, std=INITIAL_STD / (2 * layers) ** 0.5 if ends_layer else INITIAL_STD)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return next-token logits, float [batch, time, V], for int64 tokens [batch, time]."""
        logits: Tensor = self.head(self.hidden(tokens))
        return logits

    def hidden(self, tokens: Tensor) -> Tensor:
        """Return the input of the head, float [batch, time, hidden]."""
        hidden = self.dropout(functional.embedding(tokens, self.head.weight))
        rotation = rotations(tokens.shape[1], self.head_size, tokens.device)
        for block in self.blocks:
            hidden = block(hidden, rotation)
        normalized: Tensor = self.norm(hidden)
        return normalized


class Block(nn.Module):
    """Attention and a feed-forward layer, each with normalized input and a residual connection."""

    def __init__(self, hidden: int, heads: int, kv_heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(hidden, EPSILON)
        self.attention = Attention(hidden, heads, kv_heads)
        self.feed_forward_norm = nn.RMSNorm(hidden, EPSILON)
        self.feed_forward = SwiGLU(hidden, feed_forward)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, rotation: Tensor) -> Tensor:
        """Return the block's output, float [batch, time, hidden], for input of that shape and `rotations`."""
        hidden = hidden + self.dropout(self.attention(self.attention_norm(hidden), rotation))
        output: Tensor = hidden + self.dropout(self.feed_forward(self.feed_forward_norm(hidden)))
        return output


class Attention(nn.Module):
    """Causal attention, in which `heads` share the keys and values of `kv_heads`."""

    def __init__(self, hidden: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        size = hidden // heads
        self.heads, self.kv_heads = heads, kv_heads
        self.input = nn.Linear(hidden, (heads + 2 * kv_heads) * size, bias=False)  # queries, keys, values
        self.output = nn.Linear(hidden, hidden, bias=False)

    def forward(self, hidden: Tensor, rotation: Tensor) -> Tensor:
        """Return the attended values, projected, float [batch, time, hidden]."""
        by_head = self.input(hidden).unflatten(-1, (self.heads + 2 * self.kv_heads, -1)).transpose(1, 2)
        query, key, value = by_head.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
        attended = functional.scaled_dot_product_attention(
            rotate(query, rotation),
            rotate(key, rotation),
            value,
            is_causal=True,
            enable_gqa=self.kv_heads < self.heads,
        )
        projected: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return projected


class SwiGLU(nn.Module):
    """Feed-forward layer with a gate."""

    def __init__(self, hidden: int, units: int) -> None:
        super().__init__()
        self.input = nn.Linear(hidden, 2 * units, bias=False)  # gate, values
        self.down = nn.Linear(units, hidden, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the layer's output, shaped as its input."""
        gate, values = self.input(hidden).chunk(2, dim=-1)
        output: Tensor = self.down(functional.silu(gate) * values)
        return output


def rotations(time: int, size: int, device: torch.device) -> Tensor:
    """Return cosines and sines of the angles by which each position turns each pair of units, float32.

    Returns:
        [2, time, size / 2]; positions turn pair i by ROTARY_BASE ** (-2i / size) each.
    """
    speeds = ROTARY_BASE ** -(torch.arange(0, size, 2, device=device) / size)
    angles = torch.arange(time, device=device)[:, None] * speeds
    return torch.stack((angles.cos(), angles.sin()))


def rotate(units: Tensor, rotation: Tensor) -> Tensor:
    """Turn pairs of units by their positions' angles, so that products of two depend on their distance alone.

    Args:
        units: queries or keys, [batch, heads, time, size]; unit i of the first half makes a pair with that of the
            second.
        rotation: of `rotations`.
    """
    cosine, sine = rotation
    first, second = units.chunk(2, dim=-1)
    turned = torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)
    return turned.to(units.dtype)


@register(TransformerConfig, TokenStore, FactoryData)
def build(config: TransformerConfig, store: TokenStore | FactoryData) -> Transformer:
    """Build the model for the vocabulary of `store`."""
    heads, kv_heads, feed_forward = config.sizes()
    return Transformer(store.vocabulary, config.hidden, config.layers, heads, kv_heads, feed_forward, config.dropout)
