"""Configuration of a Hugging Face model as text, from which a checkpoint makes the model again without its folder."""

from __future__ import annotations

import json
import sys
from typing import Any

from torch import nn

from hpcdistill.errors import UserError

IMPLEMENTATIONS = ("attn_implementation", "experts_implementation")
CODE_KEYS = {"auto_map", *IMPLEMENTATIONS, *(f"_{name}" for name in IMPLEMENTATIONS)}
"""Keys of a configuration that can make transformers download and run code."""


def config_text(model: nn.Module) -> str | None:
    """Return the configuration of `model`, with the name of its class, as JSON; None if it is not of transformers."""
    transformers = sys.modules.get("transformers")  # imported by whoever has built such a model
    if transformers is None or not isinstance(model, transformers.PreTrainedModel):
        return None
    facts = json.loads(model.config.to_json_string(use_diff=False))
    return json.dumps({**facts, "architectures": [type(model).__name__]})


def build_from_text(text: str) -> Any:
    """Build a model, with initial weights, from what `config_text` has returned.

    Only classes of transformers itself are built: no code of others is run, and nothing is read from elsewhere.

    Raises:
        UserError: transformers is not installed, or does not have the class or its configuration.
    """
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            f"a Hugging Face model needs transformers ({error}): pip install 'hpcdistill[huggingface]'"
        ) from None
    name = None
    try:
        facts = json.loads(text, object_hook=without_code)
        (name,) = facts["architectures"]
        model_class = getattr(transformers, name)
        if not issubclass(model_class, transformers.PreTrainedModel):
            raise TypeError(f"{name} is no model")
        return model_class(model_class.config_class.from_dict(facts))
    except Exception as error:  # of any class: a configuration has free values, and transformers checks few of them
        raise UserError(
            f"transformers {transformers.__version__} cannot build a model of class {name}: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}; install the version that has trained it"
        ) from None


def without_code(section: dict[str, Any]) -> dict[str, Any]:
    """Return a section of a configuration without `CODE_KEYS`; an `object_hook` of `json.loads`."""
    return {key: value for key, value in section.items() if key not in CODE_KEYS}
