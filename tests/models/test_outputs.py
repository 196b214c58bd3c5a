"""Outputs of models: logits, alone or as an attribute, of inputs given by position or by name."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hpcdistill.models.outputs import model_outputs

pytestmark = pytest.mark.alone


class Scale(nn.Module):
    def __init__(self, wraps: bool) -> None:
        super().__init__()
        self.wraps = wraps

    def forward(self, inputs: Tensor, factor: float = 1.0) -> Any:
        logits = inputs * factor
        return SimpleNamespace(logits=logits, loss=None) if self.wraps else logits


@pytest.mark.parametrize("wraps", [False, True])
def test_logits_are_found_however_they_are_returned(wraps: bool) -> None:
    assert model_outputs(Scale(wraps), torch.ones(2), factor=3.0).tolist() == [3, 3]
