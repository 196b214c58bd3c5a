"""Registered model families: they fit their data, and other data is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hpcdistill.data.images.store import ImageStore, Kind, write_images
from hpcdistill.data.rows.store import Fields, Rows, RowStore, write_rows
from hpcdistill.data.store import StoreFile
from hpcdistill.data.tokens.store import TokenStore, write_store
from hpcdistill.errors import UserError
from hpcdistill.models.dnn import ClickDNN, DNNConfig
from hpcdistill.models.factory import FactoryConfig
from hpcdistill.models.lstm import LSTMConfig, LSTMLanguageModel
from hpcdistill.models.registry import build_model
from hpcdistill.models.resnet import ResNetConfig

pytestmark = pytest.mark.alone


@pytest.fixture
def tokens(tmp_path: Path) -> TokenStore:
    write_store(tmp_path / "tokens.h5", [("train", b"text"), ("validation", b"text")], "")
    return TokenStore(tmp_path / "tokens.h5")


@pytest.fixture
def rows(tmp_path: Path) -> RowStore:
    some = Rows(np.zeros((2, 3), np.float32), np.zeros((2, 2), np.int32), np.array([0, 1], np.uint8))
    write_rows(tmp_path / "rows.h5", [("train", some)], Fields(["a", "b", "c"], {"d": 5, "e": 7}), "")
    return RowStore(tmp_path / "rows.h5")


def test_each_category_of_each_field_has_a_vector_of_its_own() -> None:
    model = ClickDNN(dense=0, cardinalities=[2, 3], widths=[4], embedding=1)
    model.embedding.weight.data = torch.arange(5.0)[:, None]
    seen: list[torch.Tensor] = []
    model.layers.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(torch.empty(3, 0), torch.tensor([[0, 0], [1, 2], [1, 0]], dtype=torch.int32))
    assert seen[0].tolist() == [[0, 2], [1, 4], [1, 2]]


def test_the_paper_s_click_model(rows: RowStore) -> None:
    model = build_model(DNNConfig(name="dnn"), rows)
    widths = [layer.out_features for layer in model.modules() if isinstance(layer, nn.Linear)]
    assert widths == [2560, 1024, 256, 1]
    assert model(torch.zeros(6, 3), torch.ones(6, 2, dtype=torch.int32)).shape == (6,)


def test_a_projection_narrows_embedding_outputs_and_head(tokens: TokenStore) -> None:
    """Weights of a layer: 4H(P + P) + 8H + HP, as in Sak et al. 2014, equation (11), with torch's second bias."""
    model = build_model(LSTMConfig(hidden=32, layers=2, projection=8), tokens)
    lstm = 4 * 32 * (8 + 8) + 8 * 32 + 32 * 8
    assert sum(p.numel() for p in model.parameters()) == 256 * 8 + 2 * (lstm + 2 * 8) + 256 * 8 + 256
    assert model(torch.zeros(2, 5, dtype=torch.int64)).shape == (2, 5, 256)


def test_the_next_token_is_predicted_from_those_before(tokens: TokenStore) -> None:
    model = build_model(LSTMConfig(hidden=8), tokens)
    assert isinstance(model, LSTMLanguageModel)
    text = torch.arange(10)[None]
    changed = text.clone()
    changed[0, 6] = 99
    same = (model(text) == model(changed)).all(-1)[0]
    assert same.tolist() == [True] * 6 + [False] * 4


@pytest.mark.parametrize(("pixels", "strides"), [(6, 1), (65, 2)])
def test_a_resnet_takes_its_form_from_the_images(pixels: int, strides: int, tmp_path: Path) -> None:
    kind = Kind(["a", "b"], (1, pixels, pixels), [0.0], [1.0])
    write_images(tmp_path / "images.h5", [("train", np.zeros((1, 1, pixels, pixels)), np.zeros(1))], kind, "")
    model = build_model(ResNetConfig(name="resnet", layers=18), ImageStore(tmp_path / "images.h5"))
    first = next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d))
    assert (first.in_channels, first.stride) == (1, (strides, strides))
    assert model.eval()(torch.zeros(2, 1, pixels, pixels)).shape == (2, 2)


def linear_of(store: StoreFile, outputs: int = 1) -> nn.Module:
    assert isinstance(store, TokenStore)
    return nn.Linear(store.vocabulary, outputs)


def handing_on(**kwargs: Any) -> nn.Module:
    return nn.Linear(1, 1, **kwargs)


def text_of() -> str:
    return "text"


def test_a_factory_is_given_the_store(tokens: TokenStore) -> None:
    model = build_model(FactoryConfig(name="factory", factory=f"{__name__}:linear_of"), tokens)
    assert isinstance(model, nn.Linear)
    assert (model.in_features, model.out_features) == (256, 1)


def test_a_factory_is_given_the_configured_arguments(tokens: TokenStore) -> None:
    """Classes of other packages know no store."""
    args = {"in_features": 3, "out_features": 2, "bias": False}
    model = build_model(FactoryConfig(name="factory", factory="torch.nn:Linear", args=args), tokens)
    assert isinstance(model, nn.Linear)
    assert (model.in_features, model.out_features, model.bias) == (3, 2, None)
    both = FactoryConfig(name="factory", factory=f"{__name__}:linear_of", args={"outputs": 5})
    assert build_model(both, tokens).out_features == 5


@pytest.mark.parametrize(
    ("factory", "args", "message"),
    [
        ("torch.nn:Linear", {"in_features": 3}, r"missing a required argument: 'out_features'"),
        (
            "torch.nn:Linear",
            {"in_features": 3, "out_features": 3, "biased": 1},
            r"unexpected keyword argument",
        ),
        ("torch.nn:functional", {}, r"is not a callable object"),
        (f"{__name__}:handing_on", {"bias": 1, "biased": 1}, r"unexpected keyword argument 'biased'"),
    ],
)
def test_arguments_that_a_factory_does_not_take_are_refused(
    factory: str, args: dict[str, Any], message: str, tokens: TokenStore
) -> None:
    with pytest.raises(UserError, match=rf"'{factory}' cannot be called with model\.args = .*{message}.*'store'"):
        build_model(FactoryConfig(name="factory", factory=factory, args=args), tokens)


def test_a_factory_that_returns_no_model_is_refused(tokens: TokenStore) -> None:
    with pytest.raises(UserError, match=r"model\.factory = .* returned str, not a torch\.nn\.Module"):
        build_model(FactoryConfig(name="factory", factory=f"{__name__}:text_of"), tokens)


def test_a_model_for_other_data_is_refused(tokens: TokenStore, rows: RowStore) -> None:
    with pytest.raises(
        UserError, match=r"model.name = 'dnn' is not for .* a token store; use .*--model.name=lstm or .*=factory"
    ):
        build_model(DNNConfig(name="dnn"), tokens)
    with pytest.raises(
        UserError, match=r"model.name = 'lstm' is not for .* a store of rows; use --model.name=dnn or .*=factory"
    ):
        build_model(LSTMConfig(), rows)
