"""Reads a configuration from its file and the command line; names mistakes and what mends them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import CliSettingsSource

from hpcdistill.config import Config, ModelConfig
from hpcdistill.errors import UserError, suggestion

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def add_arguments(parser: argparse.ArgumentParser) -> CliSettingsSource[Config]:
    """Give `parser` one `--section.key` option for each key; pass the result to `load_config`."""
    return CliSettingsSource(
        Config, root_parser=parser, cli_parse_args=None, cli_avoid_json=True, cli_hide_none_type=True
    )


def load_config(
    path: Path, overrides: CliSettingsSource[Config] | None = None, args: argparse.Namespace | None = None
) -> Config:
    """The run that the TOML file at `path` describes, as changed by parsed command line `args`.

    Raises:
        UserError: the file cannot be read, or a key is unknown, missing or of the wrong type; each is named.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"cannot read the configuration {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None
    for key in values.keys() - Config.model_fields.keys():  # among them might be a private argument of BaseSettings
        raise UserError(f"{path}: {_unknown(key)}")
    source = overrides(parsed_args=args) if overrides is not None and args is not None else None
    try:
        return Config(**values, _cli_settings_source=source)
    except ValidationError as error:
        raise UserError(f"{path}: {_explain(error)}") from None


def _explain(error: ValidationError) -> str:
    return "; ".join(map(_explain_one, error.errors()))


def _explain_one(problem: ErrorDetails) -> str:
    place, tag = problem["loc"], ""
    if place[:1] == ("model",) and len(place) > 2:
        tag = str(place[1])  # which of the models it was tried as
        place = ("model", *place[2:])
    key, message = ".".join(map(str, place)), problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return _unknown(key, tag)
    if problem["type"] == "missing":
        needed = [
            name for name, field in _keys(Config).items() if field.is_required() and f"{name}.".startswith(f"{key}.")
        ]
        return f"{key} is missing; set {needed[-1]} in the file or with --{needed[-1]}=…"
    return f"{key} = {problem['input']!r}: {message[:1].lower()}{message[1:]}" if key else message


def _unknown(key: str, tag: str = "") -> str:
    if not tag:
        return f"unknown key {key!r}{suggestion(key, _keys(Config))}"
    (model,) = [each for each in get_args(ModelConfig) if tag in get_args(each.model_fields["name"].annotation)]
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
