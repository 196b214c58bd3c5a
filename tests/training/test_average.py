"""The moving average of a model, against that of torch."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fake_gpu import recorded_copies
from hpcdistill.training.average import MovingAverage

pytestmark = pytest.mark.alone


def model_of_all_kinds(device: str = "cpu") -> nn.Module:
    """Return a model with tied weights, an LSTM, and buffers of floats and of an integer."""
    with torch.device(device):
        model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.LSTM(4, 4), nn.Linear(4, 4))
    model[3].weight = model[0].weight
    return model


def test_the_average_is_that_of_torch() -> None:
    model = model_of_all_kinds()
    ours = MovingAverage(model, 0.9)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for _ in range(4):
        with torch.no_grad():
            for tensor in model.parameters():
                tensor.add_(torch.randn_like(tensor))
        model[1](torch.randn(8, 4))  # changes the running statistics
        for average in (ours, theirs):
            average.update_parameters(model)
    expected = theirs.state_dict()
    integer = "module.1.num_batches_tracked"
    expected[integer] = torch.tensor(4)  # an average of integers would be rounded
    assert ours.state_dict().keys() == expected.keys()
    for name, value in ours.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert ours.n_averaged == 4


def test_a_restored_average_goes_on() -> None:
    model = model_of_all_kinds()
    one = MovingAverage(model, 0.5)
    one.update_parameters(model)
    with torch.no_grad():
        model[0].bias += 1
    other = MovingAverage(model_of_all_kinds(), 0.5)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for average in (one, other):
        average.update_parameters(model)
    torch.testing.assert_close(other.module[0].bias, model[0].bias - 0.5)
    assert torch.equal(one.module[0].bias, other.module[0].bias)


def test_an_update_copies_nothing_between_host_and_gpu() -> None:
    model = model_of_all_kinds("meta")
    average = MovingAverage(model, 0.9)
    with recorded_copies() as copies:
        for _ in range(2):
            average.update_parameters(model)
    assert copies == []
