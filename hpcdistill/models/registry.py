"""Registry of model families, by their configuration."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, TypeVar

from torch import nn

from hpcdistill.config.schema import Config, with_models
from hpcdistill.config.section import ModelConfig
from hpcdistill.data.store import Store
from hpcdistill.discovery import import_siblings
from hpcdistill.errors import UserError

Build = TypeVar("Build", bound=Callable[[Any, Any], nn.Module])


class OtherKindOfDataError(UserError):
    """Model family that is for another kind of data."""


class _Family(NamedTuple):
    build: Callable[[Any, Any], nn.Module]
    stores: tuple[type[Store], ...]


_FAMILIES: dict[type[ModelConfig], _Family] = {}


def register(config: type[ModelConfig], *stores: type[Store]) -> Callable[[Build], Build]:
    """Decorate the function that builds a model family from its configuration and a store.

    Args:
        config: the family's configuration, which becomes a choice for the section `model`.
        stores: the classes of stores that the family is for.
    """

    def add(build: Build) -> Build:
        _FAMILIES[config] = _Family(build, stores)
        return build

    return add


@cache
def config_class() -> type[Config]:
    """Return the `Config` whose section `model` is that of any model family of this package."""
    import_siblings(__name__)
    return with_models([*_FAMILIES])


def build_model(config: ModelConfig, store: Store) -> nn.Module:
    """Build the configured model, with initial weights, for the data of `store`.

    Raises:
        OtherKindOfDataError: the model is for data of another kind.
        UserError: the family cannot build the model.
    """
    require_data_for(config, store)
    return _FAMILIES[type(config)].build(config, store)


def require_data_for(config: ModelConfig, store: Store) -> None:
    """Check that the configured model is for data of the kind of `store`.

    Raises:
        OtherKindOfDataError: it is not.
    """
    if isinstance(store, _FAMILIES[type(config)].stores):
        return
    fitting = [each for each, (_, kinds) in _FAMILIES.items() if isinstance(store, kinds)]
    fitting.sort(key=lambda each: Store in _FAMILIES[each].stores)  # those for any kind of data last
    raise OtherKindOfDataError(
        f"model.name = {config.name!r} is not for {store.setting}, which is {store.KIND}; use "
        + " or ".join(f"--model.name={each.family()}" for each in fitting)
    )
