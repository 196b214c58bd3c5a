"""Files of a saved model for other programs: a state dict of torch, safetensors, or a folder for transformers."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hpcdistill.data.tokens.store import TokenStore
from hpcdistill.errors import UserError
from hpcdistill.models.huggingface_config import build_from_text
from hpcdistill.models.saved import SavedModel
from hpcdistill.storage.whole_file import whole_path

logger = logging.getLogger(__name__)

SUFFIXES = {"torch": ".pt", "safetensors": ".safetensors", "huggingface": ""}
"""Formats, with the suffix of the file; "huggingface" makes a folder."""


def export(model: SavedModel, format: str, output: Path) -> None:
    """Write the model at `output`, complete or not at all. Neither the run's data nor its code are needed.

    torch: the state dict; tied tensors share their memory.
    safetensors: the state dict, with each tied tensor once; in the metadata `format` = "pt", `hpcdistill.step`,
        `hpcdistill.config` (JSON), and the name of each tensor that was left out, with the name of the one it is.
    huggingface: a folder that `from_pretrained` of transformers reads; with the tokenizer of the run's store, if the
        store is there and has one for text.

    Args:
        model: the model.
        format: one of `SUFFIXES`.
        output: file or folder, which must not exist.

    Raises:
        UserError: `output` exists or cannot be written, a package is missing, or the model is not of transformers.
    """
    prepare = {"torch": _torch, "safetensors": _safetensors, "huggingface": _huggingface}[format]
    if output.is_symlink() or output.exists():
        raise UserError(f"--output {output} exists; choose another one, or remove it")
    write = prepare(model)
    try:
        with whole_path(output) as path:
            write(path)
    except Exception as error:  # of any class: torch and safetensors have their own where a disk is full
        cause = error if isinstance(error, OSError) else error.__context__
        reason = (isinstance(cause, OSError) and cause.strerror) or " ".join(str(error).split())
        raise UserError(f"--output {output} cannot be written: {reason}; choose another one") from None


def _torch(model: SavedModel) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("xb") as file:
            torch.save(model.weights, file)

    return write


def _safetensors(model: SavedModel) -> Callable[[Path], None]:
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise UserError(f"--format safetensors: {error}; pip install 'hpcdistill[huggingface]'") from None
    once = {name: tensor.contiguous() for name, tensor in model.weights.items() if name not in model.tied}
    facts = {"hpcdistill.step": str(model.step), "hpcdistill.config": json.dumps(model.config.model_dump(mode="json"))}
    return partial(save_file, once, metadata={"format": "pt", **facts, **model.tied})


def _huggingface(model: SavedModel) -> Callable[[Path], None]:
    if not model.huggingface_config:
        raise UserError(
            f"--format huggingface is for models of transformers, and checkpoint {model.path} has another one "
            f"(model.name = {model.config.model.name!r}); use --format torch or --format safetensors"
        )
    settings = json.loads(model.huggingface_config)
    settings.pop("use_cache", None)  # which training may have turned off: the default is for generation
    built = build_from_text(json.dumps(settings))
    try:
        built.load_state_dict(model.weights, assign=True)  # keeps their dtype
    except RuntimeError as error:
        raise UserError(
            f"the weights in checkpoint {model.path} are not those of {type(built).__name__} in this version of "
            f"transformers: {' '.join(str(error).split())[:300]}; use --format torch or --format safetensors"
        ) from None
    built.tie_weights()
    tokenizer = _tokenizer(model)

    def write(path: Path) -> None:
        built.save_pretrained(path)
        if tokenizer:
            tokenizer.save_pretrained(path)

    return write


def _tokenizer(model: SavedModel) -> Any:
    """Return the tokenizer of the run's store for transformers; None if it has none, or none for text."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    if model.config.data.path is None:
        return None
    try:
        with TokenStore(model.config.data.path) as store:
            stored = store.tokenizer
    except UserError as error:
        logger.warning(f"no tokenizer is exported: {error}")
        return None
    if stored is None or stored.encoding != "utf-8":
        logger.warning(f"no tokenizer is exported: the tokens of {model.config.data.path} are sequences of bytes")
        return None
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(stored.json), eos_token=stored.separator)
