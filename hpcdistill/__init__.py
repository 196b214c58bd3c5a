"""Codistillation over MPI and Horovod; the fused loss stands alone and needs torch only."""

from hpcdistill.loss import codistillation_loss

__all__ = ["__version__", "codistillation_loss"]
__version__ = "0.1.0"
