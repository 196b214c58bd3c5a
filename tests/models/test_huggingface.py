"""Models of the library transformers, made from a type or from a folder, without a network."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpcdistill.config.data import DataConfig
from hpcdistill.data.batches import Share
from hpcdistill.data.datasets.factory import FactoryData
from hpcdistill.data.images.store import ImageStore, Kind, write_images
from hpcdistill.data.tokens.store import TokenStore, write_store
from hpcdistill.errors import UserError
from hpcdistill.models.huggingface import HuggingFaceConfig, require_positions
from hpcdistill.models.registry import build_model

pytestmark = pytest.mark.alone

GPT2 = {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16}
VIT = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "patch_size": 4,
}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    path = tmp_path_factory.mktemp("data") / "tokens.h5"
    write_store(path, [("train", b"text"), ("validation", b"text")], "")
    return TokenStore(path)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    path = tmp_path_factory.mktemp("data") / "images.h5"
    kind = Kind(["cat", "dog", "owl"], (1, 8, 8), [0.0], [1.0])
    write_images(path, [("train", np.zeros((1, 1, 8, 8)), np.zeros(1))], kind, "")
    return ImageStore(path)


@pytest.fixture(scope="module")
def reviews() -> FactoryData:
    """Return data of a user's own, with three classes."""
    config = DataConfig(factory=f"{__name__}:of_two_examples", classes=3, batch_size=1)
    return FactoryData(config, Share(0, 1, 0, 1, seed=(0, 0)))


def of_two_examples() -> tuple[list[Any], list[Any]]:
    examples = [(torch.zeros(4, dtype=torch.int64), torch.tensor(1))] * 2
    return examples, examples


def model_of(store: TokenStore | ImageStore | FactoryData, **keys: Any) -> Any:
    torch.manual_seed(0)
    return build_model(HuggingFaceConfig(name="huggingface", **keys), store)


@pytest.fixture
def saved(tokens: TokenStore, tmp_path: Path) -> Path:
    """Return the folder of a GPT-2 with 256 tokens, in bfloat16."""
    model_of(tokens, path="gpt2", args=GPT2).bfloat16().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_type_gives_initial_weights_for_the_tokens_of_the_store(tokens: TokenStore) -> None:
    model = model_of(tokens, path="gpt2", args=GPT2)
    assert type(model).__name__ == "GPT2LMHeadModel"
    assert model.training
    assert (model.config.use_cache, model.config.eos_token_id) == (False, None)
    assert model(torch.zeros(2, 5, dtype=torch.int64)).logits.shape == (2, 5, 256)
    again = model_of(tokens, path="gpt2", args=GPT2)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))


def test_a_folder_gives_its_weights_or_initial_ones(tokens: TokenStore, saved: Path) -> None:
    original = model_of(tokens, path="gpt2", args=GPT2)
    trained = model_of(tokens, path=saved, pretrained=True)
    initial = model_of(tokens, path=saved, args={"n_layer": 1})
    assert trained.training
    assert {parameter.dtype for parameter in (*trained.parameters(), *initial.parameters())} == {torch.float32}
    torch.testing.assert_close(trained.state_dict(), original.bfloat16().float().state_dict())
    assert len(initial.transformer.h) == 1
    assert not torch.equal(initial.lm_head.weight, trained.lm_head.weight)


def test_classes_and_pixels_are_those_of_the_images(images: ImageStore, tmp_path: Path) -> None:
    model = model_of(images, path="vit", args=VIT)
    assert model(torch.zeros(2, 1, 8, 8)).logits.shape == (2, 3)
    assert model.config.id2label == {0: "cat", 1: "dog", 2: "owl"}
    model.save_pretrained(tmp_path)
    images.kind.classes.append("yak")
    try:
        other = model_of(images, path=tmp_path, pretrained=True)
    finally:
        images.kind.classes.pop()
    assert other(torch.zeros(2, 1, 8, 8)).logits.shape == (2, 4)
    mine, theirs = (each.vit.embeddings.patch_embeddings.projection.weight for each in (other, model))
    assert torch.equal(mine, theirs)


def test_own_data_may_be_of_any_kind(reviews: FactoryData) -> None:
    args = {"num_hidden_layers": 1, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    tokens = torch.zeros(2, 4, dtype=torch.int64)
    classifier = model_of(reviews, path="bert", auto_class="AutoModelForSequenceClassification", args=args)
    assert classifier(tokens).logits.shape == (2, 3)
    assert model_of(reviews, path="gpt2", args=GPT2)(tokens).logits.shape == (2, 4, 3)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"path": "/no/such/folder", "pretrained": True},
            r"'/no/such/folder' is not a folder, nor a model in the cache",
        ),
        (
            {"path": "own/model"},
            r"'own/model' is not a folder, nor a model .* fetch it first, with `hf download`",
        ),
        (
            {"path": "gpt2", "args": {"n_layers": 2}},
            r"has 'n_layers', which GPT2Config does not \(did you mean 'n_layer",
        ),
        (
            {"path": "gpt2", "args": {"n_layer": "two"}},
            r"with .* = false transformers says: .*'n_layer' expected int",
        ),
        ({"path": "gpt2", "args": {"vocab_size": 9}}, r"has 256 tokens, that of model.path = 'gpt2' only 9; prepare"),
    ],
)
def test_a_model_that_cannot_be_is_refused(keys: dict[str, Any], message: str, tokens: TokenStore) -> None:
    with pytest.raises(UserError, match=message):
        model_of(tokens, **keys)


def test_sequences_longer_than_the_positions_are_refused(tokens: TokenStore) -> None:
    model = model_of(tokens, path="gpt2", args=GPT2)
    require_positions(model, 16)
    message = r"sequence_length = 17 is more than the 16 positions of GPT2LMHeadModel; .* at most 16, or max_position_"
    with pytest.raises(UserError, match=message):
        require_positions(model, 17)
    require_positions(model_of(tokens, path="gpt2", args=GPT2 | {"max_position_embeddings": 17}), 17)
    require_positions(torch.nn.Linear(1, 1), 10**9)


def test_weights_that_are_missing_are_named(tokens: TokenStore, saved: Path) -> None:
    with pytest.raises(UserError, match=r"lacks weights of GPT2LMHeadModel, .*\.h\.2\..* others; name a folder"):
        model_of(tokens, path=saved, pretrained=True, args={"n_layer": 3})
    (saved / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"pretrained = true transformers says: .*no file named model\.safetensors"):
        model_of(tokens, path=saved, pretrained=True)


def test_code_that_comes_with_a_model_is_not_run(tokens: TokenStore, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.Config"}}')
    (tmp_path / "theirs.py").write_text("raise SystemExit('their code has run')")
    with pytest.raises(UserError, match=r"of model_type 'theirs', which transformers does not know; code that comes"):
        model_of(tokens, path=tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"has no config\.json"):
        model_of(tokens, path=tmp_path)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_folder_does_not_choose_code_of_the_hub(key: str, tokens: TokenStore, saved: Path) -> None:
    file = saved / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: "their/kernel"}))
    for pretrained in (False, True):
        model = model_of(tokens, path=saved, pretrained=pretrained)
        assert model.config._attn_implementation == "sdpa"
