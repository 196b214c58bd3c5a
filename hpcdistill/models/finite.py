"""Search for values of a model that are not finite."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm


@torch.no_grad()
def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor with a NaN or an infinity; None if all values are finite.

    A GPU is waited for once, and once more for each tensor only where a value is not finite.
    """
    numbers = {name: each for name, each in tensors.items() if each.numel() and _has_infinities(each)}
    if get_total_norm(numbers.values(), math.inf).isfinite():  # NaN if any value is; faster than isfinite on all
        return None
    return next(name for name, each in numbers.items() if not each.isfinite().all())


def _has_infinities(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()
