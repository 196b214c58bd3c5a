"""Model built by a function of the user's own code."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from hpcdistill.config.section import MODEL_NAME, ModelConfig
from hpcdistill.data.store import StoreFile
from hpcdistill.discovery import import_named
from hpcdistill.errors import UserError
from hpcdistill.models.registry import register


class FactoryConfig(ModelConfig):
    """Model of one's own."""

    name: Literal["factory"] = Field(description=MODEL_NAME)
    factory: str = Field(pattern=r"^[\w.]+:\w+$")
    """Function that returns the model, as package.module:function; it is called with the open store."""


@register(FactoryConfig, StoreFile)  # type: ignore[type-abstract] # whatever the store
def build(config: FactoryConfig, store: StoreFile) -> nn.Module:
    """Import the factory and return the model that it builds for `store`.

    Raises:
        UserError: the factory cannot be imported, or returns something else than a module.
    """
    model = import_named(config.factory, "model.factory")(store)
    if not isinstance(model, nn.Module):
        raise UserError(f"model.factory = {config.factory!r} returned {type(model).__name__}, not a torch.nn.Module")
    return model
