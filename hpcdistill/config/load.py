"""Reads the file of a configuration; names the mistakes in one, and what mends them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from hpcdistill.errors import UserError, suggestion

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Config = type[BaseModel]
"""The class of all sections together."""


def read_toml(path: Path, config: Config) -> dict[str, Any]:
    """Return what the file says, by the keys of `config`.

    Raises:
        UserError: the file cannot be read, or has a key that `config` does not.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"cannot read the configuration {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None
    for key in values.keys() - config.model_fields.keys():  # among them might be a private argument of BaseSettings
        raise UserError(f"{path}: {_unknown(key, config)}")
    return values


def explain(error: ValidationError, config: Config) -> str:
    """Return each mistake in the words of the file and of the command line."""
    return "; ".join(_explain_one(problem, config) for problem in error.errors())


def _explain_one(problem: ErrorDetails, config: Config) -> str:
    place, tag = problem["loc"], ""
    if place[:1] == ("model",) and len(place) > 2:
        tag = str(place[1])  # which of the models it was tried as
        place = ("model", *place[2:])
    key, message = ".".join(map(str, place)), problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return _unknown(key, config, tag)
    if problem["type"] == "missing":
        needed = [
            name for name, field in _keys(config).items() if field.is_required() and f"{name}.".startswith(f"{key}.")
        ]
        return f"{key} is missing; set {needed[-1]} in the file or with --{needed[-1]}=…"
    return f"{key} = {problem['input']!r}: {message[:1].lower()}{message[1:]}" if key else message


def _unknown(key: str, config: Config, tag: str = "") -> str:
    if not tag:
        return f"unknown key {key!r}{suggestion(key, _keys(config))}"
    (model,) = [
        each
        for each in get_args(config.model_fields["model"].annotation)
        if tag in get_args(each.model_fields["name"].annotation)
    ]
    return f"unknown key {key!r} of model.name = {tag!r}{suggestion(key, _keys(model, 'model.'))}"


def _keys(section: type[BaseModel], prefix: str = "") -> dict[str, FieldInfo]:
    """Return each key of a section and of those below it; a model's are those of all kinds."""
    keys: dict[str, FieldInfo] = {}
    for name, field in section.model_fields.items():
        keys[prefix + name] = field
        for type_ in (field.annotation, *get_args(field.annotation)):
            if isinstance(type_, type) and issubclass(type_, BaseModel):
                keys |= _keys(type_, f"{prefix}{name}.")
    return keys
