"""Transformer: it computes what the Llama of the library transformers does; causality, positions, initial weights."""

import re
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from hpcdistill.data.tokens.store import TokenStore
from hpcdistill.models.transformer import Transformer, TransformerConfig, build, rotate, rotations
from repository import ROOT

pytestmark = pytest.mark.alone

VOCABULARY = 61


def small(layers: int = 2, kv_heads: int = 4, dropout: float = 0.0) -> Transformer:
    return Transformer(VOCABULARY, 32, layers, heads=4, kv_heads=kv_heads, feed_forward=48, dropout=dropout)


def some_tokens(time: int = 9) -> Tensor:
    return torch.randint(VOCABULARY, (3, time), generator=torch.Generator().manual_seed(0))


def llama_of(model: Transformer, kv_heads: int) -> LlamaForCausalLM:
    """Return a Llama with the weights of `model`."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=len(model.blocks),
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
    )
    llama = LlamaForCausalLM(config).double()
    with torch.no_grad():
        llama.model.embed_tokens.weight.copy_(model.head.weight)
        llama.model.norm.weight.copy_(model.norm.weight)
        for theirs, ours in zip(llama.model.layers, model.blocks, strict=True):
            attention, mlp = theirs.self_attn, theirs.mlp
            merged = [attention.q_proj, attention.k_proj, attention.v_proj], [mlp.gate_proj, mlp.up_proj]
            for parts, whole in zip(merged, (ours.attention.input, ours.feed_forward.input), strict=True):
                rows = whole.weight.split([part.out_features for part in parts])
                for part, weight in zip(parts, rows, strict=True):
                    part.weight.copy_(weight)
            attention.o_proj.weight.copy_(ours.attention.output.weight)
            mlp.down_proj.weight.copy_(ours.feed_forward.down.weight)
            theirs.input_layernorm.weight.copy_(ours.attention_norm.weight)
            theirs.post_attention_layernorm.weight.copy_(ours.feed_forward_norm.weight)
    return llama


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_logits_and_gradients_are_those_of_a_llama(kv_heads: int) -> None:
    torch.manual_seed(0)
    model = small(kv_heads=kv_heads).double()
    for parameter in model.parameters():  # so that all weights matter: at first the norms are ones
        nn.init.normal_(parameter, mean=0.5 * (parameter.dim() == 1), std=0.3)
    llama, tokens = llama_of(model, kv_heads), some_tokens()
    ours, theirs = model(tokens), llama(tokens).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)  # both have rotations in float32
    ours.square().mean().backward()
    theirs.square().mean().backward()
    gradient = llama.model.embed_tokens.weight.grad
    torch.testing.assert_close(model.head.weight.grad, gradient, rtol=1e-5, atol=1e-5 * gradient.abs().max().item())


def test_the_next_token_is_predicted_from_those_before() -> None:
    model, tokens = small(), some_tokens(10)
    changed = tokens.clone()
    changed[:, 6] = (changed[:, 6] + 1) % VOCABULARY
    same = (model(tokens) == model(changed)).all(-1)
    assert same.tolist() == [[True] * 6 + [False] * 4] * 3


def test_products_of_rotated_units_depend_on_their_distance_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 8, generator=generator, dtype=torch.float64)
    rotation = rotations(12, 8, torch.device("cpu"))
    queries, keys = (rotate(one.expand(1, 1, 12, 8), rotation)[0, 0] for one in (query, key))
    products = queries @ keys.t()
    for distance in range(-11, 12):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-5, atol=1e-5)
    assert products[0, 0] == pytest.approx((query @ key).item())
    assert len({round(value, 4) for value in products[0].tolist()}) == 12


def test_weights_are_drawn_as_in_gpt_2() -> None:
    torch.manual_seed(0)
    model = small(layers=8)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            assert parameter.tolist() == [1] * 32, name
        else:
            last = name.endswith(("attention.output.weight", "feed_forward.down.weight"))
            assert parameter.std().item() == pytest.approx(0.02 / 4 if last else 0.02, rel=0.1), name


def test_head_and_embedding_are_one_parameter() -> None:
    assert [name for name, parameter in small().named_parameters() if VOCABULARY in parameter.shape] == ["head.weight"]


def test_dropout_is_for_training() -> None:
    model, tokens = small(dropout=0.5), some_tokens()
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    torch.testing.assert_close(model(tokens), model(tokens))


def test_autocast_computes_in_bfloat16() -> None:
    torch.manual_seed(0)
    model, tokens = small(), some_tokens()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(tokens)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), model(tokens), rtol=0.05, atol=0.01)
    torch.testing.assert_close(model.bfloat16()(tokens), logits, rtol=0.05, atol=0.01)


def test_sizes_follow_from_the_width() -> None:
    assert TransformerConfig(name="transformer").sizes() == (2, 2, 384)
    assert TransformerConfig(name="transformer", hidden=1024, kv_heads=4).sizes() == (16, 4, 2752)
    assert TransformerConfig(name="transformer", hidden=32).sizes() == (1, 1, 128)


SIZES = re.findall(r"^\| `(hidden=.*)` \| (.*) \| (.*) \|$", (ROOT / "docs" / "models.md").read_text(), re.M)


@pytest.mark.parametrize(("keys", "of_bytes", "of_words"), SIZES)
def test_the_sizes_in_the_documentation_are_right(keys: str, of_bytes: str, of_words: str) -> None:
    config = TransformerConfig(name="transformer", **dict(key.split("=") for key in keys.split()))
    for vocabulary, expected in ((256, of_bytes), (32_768, of_words)):
        with torch.device("meta"):
            model = build(config, cast(TokenStore, SimpleNamespace(vocabulary=vocabulary)))
        count = sum(parameter.numel() for parameter in model.parameters())
        assert expected == (f"{count / 1e9:.1f} B" if count >= 1e9 else f"{count / 1e6:.1f} M")


def test_there_are_sizes_in_the_documentation() -> None:
    assert len(SIZES) == 8
