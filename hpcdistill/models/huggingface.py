"""Models of the library transformers, from a configuration or with trained weights; never from the network."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from hpcdistill.config.paths import UserPath
from hpcdistill.config.section import MODEL_NAME, Arguments, ModelConfig
from hpcdistill.data.datasets.factory import FactoryData
from hpcdistill.data.images.store import ImageStore
from hpcdistill.data.tokens.store import TokenStore
from hpcdistill.errors import UserError, suggestion
from hpcdistill.models.huggingface_config import without_code
from hpcdistill.models.registry import register

MESSAGE_LENGTH = 300  # of what transformers says, at most
CAUSAL_LM = "AutoModelForCausalLM"
IMAGES = "AutoModelForImageClassification"
SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


class HuggingFaceConfig(ModelConfig):
    """Model of the library transformers."""

    name: Literal["huggingface"] = Field(description=MODEL_NAME)
    path: UserPath
    """Folder with a config.json; or the identifier of a model in the local cache; or, for initial weights, a type of
    model that transformers knows, such as llama. Nothing is downloaded."""
    pretrained: bool = False
    """Begin with the weights in `path`, not with initial weights of the same configuration."""
    args: Arguments = Field(default={})
    """Values of the configuration that replace those in `path`."""
    auto_class: (
        Literal["AutoModelForCausalLM", "AutoModelForImageClassification", "AutoModelForSequenceClassification"] | None
    ) = None
    """Class of transformers that makes the model. Without it, image classification for a store of images, and causal
    language modelling for other data."""


@register(HuggingFaceConfig, TokenStore, ImageStore, FactoryData)
def build(config: HuggingFaceConfig, store: TokenStore | ImageStore | FactoryData) -> nn.Module:
    """Build the model for the vocabulary or the classes of `store`, with float32 weights, in training mode.

    A model with initial weights takes the store's number of tokens, channels and pixels, unless `args` has others. Code
    that comes with a model is never run.

    Raises:
        UserError: transformers is missing; there is no such model on this machine; it is not for this kind of data;
            `args` has a value that its configuration does not have; or it has fewer tokens than `store`.
    """
    try:
        import transformers
    except ImportError as error:
        raise UserError(f"model.name = 'huggingface': {error}; pip install 'hpcdistill[huggingface]'") from None
    transformers.logging.disable_progress_bar()  # every rank would draw one
    name = config.auto_class or (IMAGES if isinstance(store, ImageStore) else CAUSAL_LM)
    auto = getattr(transformers, name)
    try:
        settings = _settings(config, store, predicts_tokens=name == CAUSAL_LM)
        model = _pretrained(auto, config, settings) if config.pretrained else _initial(auto, settings)
    except UserError:
        raise
    except Exception as error:  # of any class: each model checks its configuration in its own way
        reason = textwrap.shorten(str(error), MESSAGE_LENGTH)
        raise UserError(
            f"model.path = {str(config.path)!r} does not make an {name}; with model.pretrained = "
            f"{str(config.pretrained).lower()} transformers says: {type(error).__name__}: {reason}"
        ) from error
    return model.train()


def require_positions(model: nn.Module, length: int) -> None:
    """Check that a model has positions for sequences of `length` tokens, if it is one of transformers.

    Raises:
        UserError: it has fewer.
    """
    settings: Any = getattr(model, "config", None)
    if not hasattr(settings, "get_text_config"):  # a model of another library
        return
    positions = getattr(settings.get_text_config(), "max_position_embeddings", None) or 0  # 0 or -1: any number
    if 0 < positions < length:
        raise UserError(
            f"data.sequence_length = {length} is more than the {positions} positions of {type(model).__name__}; set "
            f"--data.sequence_length to at most {positions}, or max_position_embeddings in --model.args to {length}"
        )


def _initial(auto: Any, settings: Any) -> nn.Module:
    model: nn.Module = auto.from_config(settings, trust_remote_code=False, dtype=torch.float32)
    return model


def _pretrained(auto: Any, config: HuggingFaceConfig, settings: Any) -> nn.Module:
    """Load the weights. A classifier for other classes is replaced by an initial one.

    Raises:
        UserError: other weights are missing.
    """
    model: nn.Module
    model, loading = auto.from_pretrained(
        _folder(config),
        config=settings,
        trust_remote_code=False,
        local_files_only=True,
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    replaced = {*loading["missing_keys"], *(name for name, *_ in loading["mismatched_keys"])}
    missing = sorted(name for name in replaced if "classifier" not in name)
    if missing:
        raise UserError(
            f"model.path = {str(config.path)!r} lacks weights of {type(model).__name__}, or has them in another size: "
            f"{missing[0]} and {len(missing) - 1} others; name a folder of the whole model, or omit model.pretrained"
        )
    return model


def _settings(config: HuggingFaceConfig, store: TokenStore | ImageStore | FactoryData, predicts_tokens: bool) -> Any:
    """Return the configuration of the model, with the values of the store and then those of `config.args`."""
    there = _load_settings(config, {})
    for name in config.args:
        if not hasattr(there, name):
            raise UserError(
                f"model.args has {name!r}, which {type(there).__name__} does not{suggestion(name, there.to_dict())}"
            )
    if isinstance(store, ImageStore):
        values = _image_values(config, store)
    elif predicts_tokens:
        values = _token_values(config, store.vocabulary, there)
    else:
        values = {"num_labels": store.vocabulary}
    fitting = {name: value for name, value in values.items() if hasattr(there, name)}
    settings = _load_settings(config, fitting | config.args)
    vocabulary = _vocabulary(settings)
    if not isinstance(store, ImageStore) and predicts_tokens and vocabulary and store.vocabulary > vocabulary:
        raise UserError(
            f"the vocabulary of {store.setting} has {store.vocabulary} tokens, that of model.path = "
            f"{str(config.path)!r} only {vocabulary}; prepare the text with the tokenizer of the model"
        )
    settings.use_cache = False  # of keys and values, which only generation needs
    return settings


def _vocabulary(settings: Any) -> int | None:
    """Return the number of tokens of a model; None if it is not one of text."""
    vocabulary: int | None = getattr(settings.get_text_config(), "vocab_size", None)
    return vocabulary


def _token_values(config: HuggingFaceConfig, vocabulary: int, there: Any) -> dict[str, Any]:
    if config.pretrained or _vocabulary(there) == vocabulary:
        return {}
    # The special tokens are those of another tokenizer; one for padding would never be learned.
    return {"vocab_size": vocabulary} | dict.fromkeys(SPECIAL_TOKENS)


def _image_values(config: HuggingFaceConfig, store: ImageStore) -> dict[str, Any]:
    labels = dict(enumerate(store.kind.classes))
    values: dict[str, Any] = {"id2label": labels, "label2id": {label: number for number, label in labels.items()}}
    if not config.pretrained:
        values["num_channels"] = store.kind.channels
        if store.kind.shape:
            values["image_size"] = store.kind.shape[-1]
    return values


def _load_settings(config: HuggingFaceConfig, values: dict[str, Any]) -> Any:
    """Return the configuration of the model with `values` in it.

    Not by `AutoConfig`, which takes code from elsewhere if config.json names it as `attn_implementation`.

    Raises:
        UserError: there is no such model on this machine, or no config.json, or it is of a type that is not known.
    """
    from transformers import CONFIG_MAPPING

    kind = str(config.path)
    if kind in CONFIG_MAPPING and not config.pretrained and not config.path.is_dir():
        return CONFIG_MAPPING[kind](**values)
    file = _folder(config) / "config.json"
    if not file.is_file():
        raise UserError(f"model.path = {kind!r} has no config.json; name the folder of a model")
    facts = json.loads(file.read_text(), object_hook=without_code)
    if facts.get("model_type") not in CONFIG_MAPPING:
        raise UserError(
            f"model.path = {kind!r} is of model_type {facts.get('model_type')!r}, which transformers does not know; "
            "code that comes with a model is not run: import it in a function for model.name = 'factory'"
        )
    return CONFIG_MAPPING[facts["model_type"]].from_dict(facts, **values)


def _folder(config: HuggingFaceConfig) -> Path:
    """Return the folder of the model.

    Raises:
        UserError: there is none on this machine.
    """
    from huggingface_hub import constants, snapshot_download

    if config.path.is_dir():
        return config.path
    try:
        return Path(snapshot_download(str(config.path), local_files_only=True))
    except (OSError, ValueError):  # not in the cache; not an identifier
        raise UserError(
            f"model.path = {str(config.path)!r} is not a folder, nor a model in the cache {constants.HF_HUB_CACHE}; "
            "a run downloads nothing: fetch it first, with `hf download`, where there is a network"
        ) from None
