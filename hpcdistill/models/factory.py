"""Model built by a function of the user's own code, or of any package."""

from __future__ import annotations

from inspect import signature
from typing import Literal

from pydantic import Field
from torch import nn

from hpcdistill.config.section import MODEL_NAME, Arguments, ModelConfig
from hpcdistill.data.store import Store
from hpcdistill.discovery import import_named
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
    make, arguments = import_named(config.factory, "model.factory"), config.args
    try:
        parameters = signature(make)
        if "store" in parameters.parameters:
            arguments = {"store": store} | arguments
        parameters.bind(**arguments)
    except (TypeError, ValueError) as error:  # of something that cannot be called, or has no signature
        raise _refusal(config, error) from None
    try:
        model = make(**arguments)
    except TypeError as error:
        if "unexpected keyword argument" in str(error):  # of a function that hands its **kwargs on
            raise _refusal(config, error) from error
        raise
    if not isinstance(model, nn.Module):
        raise UserError(f"model.factory = {config.factory!r} returned {type(model).__name__}, not a torch.nn.Module")
    return model


def _refusal(config: FactoryConfig, error: Exception) -> UserError:
    return UserError(
        f"model.factory = {config.factory!r} cannot be called with model.args = {config.args} ({error}); give what it "
        "takes by name; only a parameter named 'store' is given, the open store"
    )
