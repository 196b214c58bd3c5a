"""Reading of a configuration, from a file and the command line, with a remedy for each mistake."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import CliSettingsSource

from hpcdistill.config.schema import Config
from hpcdistill.errors import UserError, suggestion

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def add_keys(parser: argparse.ArgumentParser, config: type[Config]) -> None:
    """Add one option `--section.key` for each key of `config` to `parser`, for `load_config`."""
    source: CliSettingsSource[Any] = CliSettingsSource(
        config, root_parser=parser, cli_parse_args=None, cli_avoid_json=True, cli_hide_none_type=True
    )
    parser.set_defaults(overrides=source)


def load_config(path: Path, config: type[Config], args: argparse.Namespace | None = None) -> Config:
    """Return the configuration in a TOML file.

    Args:
        path: the file.
        config: class to make, with the model families that the file may name.
        args: parsed arguments that override keys of the file, from a parser prepared by `add_keys`.

    Raises:
        UserError: the file cannot be read, or a key is unknown, missing or of the wrong type; the message names each.
    """
    source = args.overrides(parsed_args=args) if args is not None else None
    try:
        return config(**_read_toml(path, config), _cli_settings_source=source)
    except ValidationError as error:
        raise UserError(f"{path}: {_explain(error, config)}") from None


def _read_toml(path: Path, config: type[Config]) -> dict[str, Any]:
    """Return the values in a TOML file, by the keys of `config`.

    Raises:
        UserError: the file cannot be read, or has a key that `config` does not.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"cannot read the configuration {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None
    # Here, since a key could be the name of a private argument of BaseSettings.
    for key in values.keys() - config.model_fields.keys():
        raise UserError(f"{path}: {_unknown(key, config)}")
    return values


def _explain(error: ValidationError, config: type[Config]) -> str:
    """Return a message that names each mistake by its key in the file and on the command line."""
    return "; ".join(_explain_one(problem, config) for problem in error.errors())


def _explain_one(problem: ErrorDetails, config: type[Config]) -> str:
    place, tag = problem["loc"], ""
    if place[:1] == ("model",) and len(place) > 2:
        tag = str(place[1])  # name of the model family
        place = ("model", *place[2:])
    key, message = ".".join(map(str, place)), problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return _unknown(key, config, tag)
    if problem["type"] == "missing":
        needed = [
            name for name, field in _keys(config).items() if field.is_required() and f"{name}.".startswith(f"{key}.")
        ]
        return f"{key} is missing; set {needed[-1]} in the file or with --{needed[-1]}=…"
    if problem["type"] == "value_error" and isinstance(problem["input"], dict):  # of a section; it names its keys
        return message
    return f"{key} = {problem['input']!r}: {message[:1].lower()}{message[1:]}"


def _unknown(key: str, config: type[Config], tag: str = "") -> str:
    if not tag:
        return f"unknown key {key!r}{suggestion(key, _keys(config))}"
    (model,) = [each for each in get_args(config.model_fields["model"].annotation) if each.family() == tag]
    return f"unknown key {key!r} of model.name = {tag!r}{suggestion(key, _keys(model, 'model.'))}"


def _keys(section: type[BaseModel], prefix: str = "") -> dict[str, FieldInfo]:
    """Return the keys of a section and of the sections in it; those of `model` are the keys of all families."""
    keys: dict[str, FieldInfo] = {}
    for name, field in section.model_fields.items():
        keys[prefix + name] = field
        for type_ in (field.annotation, *get_args(field.annotation)):
            if isinstance(type_, type) and issubclass(type_, BaseModel):
                keys |= _keys(type_, f"{prefix}{name}.")
    return keys
