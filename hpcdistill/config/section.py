"""Base classes of the sections of a configuration."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator
from pydantic_settings import NoDecode

DEFAULT_MODEL = "lstm"
MODEL_NAME = (
    "Model family, which must fit the data; 'huggingface' is one of transformers, 'factory' one of your own. "
    f"Without it, '{DEFAULT_MODEL}'."
)
"""Description of the key `name`, which every model family declares."""


def _parse_json(value: Any) -> Any:
    """Parse text from the command line, which is a JSON object; a table of the file is a dictionary already."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error}); give an object, such as '{{\"rate\": 0.5}}'") from None


Arguments = Annotated[dict[str, Any], NoDecode, BeforeValidator(_parse_json)]
"""Keyword arguments of a user's own function: a table in the file, one JSON object on the command line."""


class Section(BaseModel):
    """Table of the TOML file; a key that is not declared is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _convert_literals(cls, values: Any) -> Any:
        """Convert text from the command line to the numbers of a `Literal`: pydantic converts all other types."""
        if not isinstance(values, dict):
            return values
        literals = {key: field.annotation for key, field in cls.model_fields.items()}
        choices = [
            (key, each) for key, type_ in literals.items() if get_origin(type_) is Literal for each in get_args(type_)
        ]
        return values | {key: choice for key, choice in choices if values.get(key) == str(choice)}


class ModelConfig(Section):
    """Configuration of a model; each model family derives its own, and names itself by a `Literal`."""

    name: str

    @classmethod
    def family(cls) -> str:
        """Return the only value of `name`."""
        name: str = get_args(cls.model_fields["name"].annotation)[0]
        return name
