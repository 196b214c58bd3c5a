"""Codistillation over MPI and Horovod; the fused loss stands alone and needs torch only."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from hpcdistill.output import is_debugging, log_to_stderr

if TYPE_CHECKING:
    from hpcdistill.codistill.session import Codistillation
    from hpcdistill.distributed.groups import Groups
    from hpcdistill.losses.binary import binary_codistillation_loss
    from hpcdistill.losses.codistillation import CodistillationLoss, codistillation_loss
    from hpcdistill.losses.linear import linear_codistillation_loss
    from hpcdistill.losses.reduction import LossParts
    from hpcdistill.losses.vocab_parallel import VocabParallel

__all__ = [
    "Codistillation",
    "CodistillationLoss",
    "Groups",
    "LossParts",
    "VocabParallel",
    "__version__",
    "binary_codistillation_loss",
    "codistillation_loss",
    "linear_codistillation_loss",
]
__version__ = "0.1.0"

if is_debugging():
    log_to_stderr()

_HOMES = {
    "Codistillation": "codistill.session",
    "CodistillationLoss": "losses.codistillation",
    "Groups": "distributed.groups",
    "LossParts": "losses.reduction",
    "VocabParallel": "losses.vocab_parallel",
    "binary_codistillation_loss": "losses.binary",
    "codistillation_loss": "losses.codistillation",
    "linear_codistillation_loss": "losses.linear",
}


def __getattr__(name: str) -> object:
    """Import a public name on first use: torch takes a second to import, and preparing data does without it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
