"""ResNet: published numbers of parameters, shapes, and that it learns."""

import pytest
import torch
from torch import nn

from hpcdistill.models.resnet import ResNet

pytestmark = pytest.mark.alone


@pytest.mark.parametrize(("layers", "expected"), [(18, 11_689_512), (50, 25_557_032)])
def test_there_are_as_many_parameters_as_published(layers: int, expected: int) -> None:
    with torch.device("meta"):
        model = ResNet(layers, 1000, 3, small=False)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


@pytest.mark.parametrize(("layers", "outputs"), [(18, [8, 16, 32, 64]), (50, [32, 64, 128, 256])])
def test_the_width_sets_the_channels_of_all_stages(layers: int, outputs: list[int]) -> None:
    with torch.device("meta"):
        model, images = ResNet(layers, 10, 3, small=True, width=8), torch.empty(2, 3, 16, 16)
    assert sorted({block.outputs for block in model.blocks}) == outputs
    assert model.stem(images).shape[1] == 8
    assert model(images).shape == (2, 10)


@pytest.mark.parametrize("layers", [18, 50])
@pytest.mark.parametrize(
    ("side", "small", "stages"), [(224, False, [56, 28, 14, 7]), (32, True, [32, 16, 8, 4]), (28, True, [28, 14, 7, 4])]
)
def test_each_stage_has_the_published_size(layers: int, side: int, small: bool, stages: list[int]) -> None:
    with torch.device("meta"):
        model, images = ResNet(layers, 10, 1, small), torch.empty(2, 1, side, side)
    features, sides = model.stem(images), []
    for block in model.blocks:
        features = block(features)
        sides.append(features.shape[-1])
    assert sorted(set(sides), reverse=True) == stages
    assert model(images).shape == (2, 10)


def test_a_bottleneck_strides_in_its_3x3_convolution() -> None:
    strides = {
        module.kernel_size: module.stride
        for module in ResNet(50, 10, 3, small=False).blocks[3].residual.modules()
        if isinstance(module, nn.Conv2d)
    }
    assert strides == {(1, 1): (1, 1), (3, 3): (2, 2)}


@pytest.mark.parametrize("layers", [18, 50])
def test_a_fresh_block_adds_nothing(layers: int) -> None:
    block = ResNet(layers, 10, 3, small=True).blocks[1]
    features = torch.rand(2, block.outputs, 4, 4)
    torch.testing.assert_close(block(features), features)


@pytest.mark.parametrize("layers", [18, 50])
def test_it_learns_some_pictures_by_heart(layers: int) -> None:
    torch.manual_seed(0)
    model = ResNet(layers, 4, 1, small=True)
    images, labels = torch.randn(16, 1, 8, 8), torch.arange(16) % 4
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in model.parameters())
    assert nn.functional.cross_entropy(model(images), labels) < 0.5


def test_evaluation_takes_the_statistics_of_training() -> None:
    torch.manual_seed(0)
    model = ResNet(18, 4, 3, small=True)
    images = torch.randn(8, 3, 32, 32) * 5 + 2
    with torch.no_grad():
        fresh = model.eval()(images)
        model.train()
        for _ in range(50):  # after which the running averages are those of these pictures
            training = model(images)
        evaluated = model.eval()(images)
        alone = model(images[:1])
    difference = (evaluated - training).abs().max()
    assert difference < 0.1 * training.std() < (fresh - training).abs().max()
    torch.testing.assert_close(alone, evaluated[:1])
