"""The models that `[model] name` can build."""

from __future__ import annotations

import importlib

from torch import nn

from hpcdistill.config.schema import DNNConfig, FactoryConfig, LSTMConfig, ModelConfig, ResNetConfig
from hpcdistill.data.images.batches import SMALL
from hpcdistill.data.images.store import ImageStore
from hpcdistill.data.rows.store import RowStore
from hpcdistill.data.store import StoreFile
from hpcdistill.data.tokens.store import TokenStore
from hpcdistill.errors import UserError
from hpcdistill.models.dnn import ClickDNN
from hpcdistill.models.lstm import LSTMLanguageModel
from hpcdistill.models.resnet import ResNet


class OtherKindOfDataError(UserError):
    """A model that is not for such data at all."""


def build_model(config: ModelConfig, store: StoreFile) -> nn.Module:
    """The configured model, freshly initialised, for the data of `store`.

    Raises:
        OtherKindOfDataError: the model is for data of another kind.
        UserError: there is no such factory.
    """
    if isinstance(config, FactoryConfig):
        return _made_by(config.factory, store)
    if isinstance(config, LSTMConfig) and isinstance(store, TokenStore):
        return LSTMLanguageModel(store.vocabulary, config.hidden, config.layers, config.projection, config.dropout)
    if isinstance(config, DNNConfig) and isinstance(store, RowStore):
        fields = store.fields
        return ClickDNN(len(fields.dense), list(fields.categorical.values()), config.widths, config.embedding)
    if isinstance(config, ResNetConfig) and isinstance(store, ImageStore):
        small = bool(store.kind.shape) and store.kind.shape[-1] <= SMALL
        return ResNet(config.layers, len(store.kind.classes), store.kind.channels, small)
    fitting = {TokenStore: "lstm", RowStore: "dnn", ImageStore: "resnet"}[type(store)]
    raise OtherKindOfDataError(
        f"model.name = {config.name!r} is not for data.path = {store.path}, which is {store.KIND}; use "
        f"--model.name={fitting}, or factory for a model of your own"
    )


def _made_by(factory: str, store: StoreFile) -> nn.Module:
    module, _, function = factory.partition(":")
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"model.factory = {factory!r} cannot be had ({error}); name a function of an installed module, or one "
            "of the folder you start in"
        ) from None
    except SystemExit:  # on one rank alone it would leave the others waiting, on all it would pass for success
        raise UserError(
            f"model.factory = {factory!r}: importing {module} ends the program; move what it does as a script under "
            "if __name__ == '__main__'"
        ) from None
    model = make(store)
    if not isinstance(model, nn.Module):
        raise UserError(f"model.factory = {factory!r} made {type(model).__name__}, not a torch.nn.Module")
    return model
