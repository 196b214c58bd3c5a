"""Recurrent layers whose copies keep their weights in one block."""

import pytest
from torch import nn

from hpcdistill.models.recurrent import flatten_recurrent

pytestmark = pytest.mark.alone


class Model(nn.Module):
    """Model with recurrent layers at two depths."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.LSTM(3, 4)
        self.second = nn.GRU(4, 4)
        self.others = nn.ModuleList([nn.Linear(4, 4), nn.RNN(4, 4)])


def test_each_recurrent_layer_is_flattened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that torch is asked to: on a CPU, and without cuDNN, it does nothing."""
    flattened: list[nn.Module] = []
    model = Model()
    monkeypatch.setattr(nn.RNNBase, "flatten_parameters", lambda layer: flattened.append(layer))
    flatten_recurrent(model)
    assert flattened == [model.first, model.second, model.others[1]]
