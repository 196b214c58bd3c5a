"""Codistillation over MPI and Horovod; the fused loss stands alone and needs torch only."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hpcdistill.binary_loss import binary_codistillation_loss
    from hpcdistill.linear_loss import linear_codistillation_loss
    from hpcdistill.loss import CodistillationLoss, codistillation_loss
    from hpcdistill.reduction import LossParts
    from hpcdistill.vocabulary_shard import VocabularyShard

__all__ = [
    "CodistillationLoss",
    "LossParts",
    "VocabularyShard",
    "__version__",
    "binary_codistillation_loss",
    "codistillation_loss",
    "linear_codistillation_loss",
]
__version__ = "0.1.0"

_HOMES = {
    "CodistillationLoss": "loss",
    "LossParts": "reduction",
    "VocabularyShard": "vocabulary_shard",
    "binary_codistillation_loss": "binary_loss",
    "codistillation_loss": "loss",
    "linear_codistillation_loss": "linear_loss",
}


def __getattr__(name: str) -> object:
    """Import a loss when it is asked for: torch takes a second, and preparing data does without it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
