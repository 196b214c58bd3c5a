"""Model built by a function of the user's own code, or of any package."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn

from hpcdistill.config.section import MODEL_NAME, Arguments, ModelConfig
from hpcdistill.data.store import Store
from hpcdistill.discovery import NamedCall
from hpcdistill.errors import UserError
from hpcdistill.models.registry import register


class FactoryConfig(ModelConfig):
    """Model built by any function."""

    name: Literal["factory"] = Field(description=MODEL_NAME)
    factory: str = Field(pattern=r"^[\w.]+:\w+$")
    """Function or class that returns the model, as package.module:function; a parameter named `store` gets the open
    store."""
    args: Arguments = Field(default={})
    """Keyword arguments of the factory."""


@register(FactoryConfig, Store)  # type: ignore[type-abstract] # whatever the store
def build(config: FactoryConfig, store: Store) -> nn.Module:
    """Import the factory and return the model that it builds.

    Raises:
        UserError: the factory cannot be imported, does not take the arguments, or returns something else than a module.
    """
    model = NamedCall("model", config.factory, config.args, store=store)()
    if not isinstance(model, nn.Module):
        raise UserError(f"model.factory = {config.factory!r} returned {type(model).__name__}, not a torch.nn.Module")
    return model
