"""Type of the keyword arguments that the losses share."""

from collections.abc import Iterable
from typing import TypedDict

from torch import Tensor


class LossOptions(TypedDict, total=False):
    """Keyword arguments of `codistillation_loss`, which explains them, and of `linear_codistillation_loss`."""

    distill_weight: float
    temperature: float
    teacher_weights: Iterable[float] | None
    class_weight: Tensor | None
    label_smoothing: float
    ignore_index: int
    z_loss: float
    reduction: str
    normalizer: float | Tensor | None
    implementation: str
    check_target: bool
