"""Codistillation over MPI and Horovod; the fused loss stands alone and needs torch only."""

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
